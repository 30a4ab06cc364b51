"""Domain values as serialized response messages. What is stored under an idempotency key is made here too."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersResponse, PhoneNumber
from server.rules.values import Placed


def order_response(placed: Placed) -> bytes:
    """The serialized response to an order that was placed."""
    order, at = placed.order, _whole_seconds(placed.at)
    return OrderNumbersResponse(
        success=True,
        data=[
            PhoneNumber(
                id=assignment_id,
                number=number,
                number_type=row.number_type,
                sms_enabled=row.sms_enabled,
                mms_enabled=row.mms_enabled,
                created_at=at,
                updated_at=at,
                **order.routing._asdict(),  # a field that is None stays unset
            )
            for assignment_id, number, row in zip(order.assignment_ids, order.numbers, placed.numbers, strict=True)
        ],
    ).SerializeToString()


def _whole_seconds(at: datetime) -> Timestamp:
    # The contract has no fractions, and JSON would print those that are there.
    return Timestamp(seconds=int(at.timestamp()))
