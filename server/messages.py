"""Domain to response bytes."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersResponse, PhoneNumber
from server.rules.values import Placed


def answer_of(placed: Placed) -> bytes:
    """The serialized answer to an order that was placed."""
    return _response(placed).SerializeToString()


def _response(placed: Placed) -> OrderNumbersResponse:
    order, at = placed.order, _whole_seconds(placed.at)
    return OrderNumbersResponse(
        success=True,
        data=[
            PhoneNumber(
                id=assignment_id,
                number=number,
                number_type=row.number_type,
                inbound_url=order.inbound_url,
                status_url=order.status_url,
                label=order.label,
                campaign_id=order.campaign_id,
                sms_enabled=row.sms_enabled,
                mms_enabled=row.mms_enabled,
                created_at=at,
                updated_at=at,
            )
            for assignment_id, number, row in zip(order.assignment_ids, order.numbers, placed.numbers, strict=True)
        ],
    )


def _whole_seconds(at: datetime) -> Timestamp:
    return Timestamp(seconds=int(at.timestamp()))
