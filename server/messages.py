"""Domain values as serialized response messages. What is stored under an idempotency key is made here too."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE, Value
from google.protobuf.timestamp_pb2 import Timestamp

from ordernumbers.v1 import inventory_pb2, orders_pb2, phone_numbers_pb2
from ordernumbers.v1.orders_pb2 import OrderNumbersResponse
from ordernumbers.v1.phone_numbers_pb2 import PhoneNumber
from server.money import format_amount
from server.rules.values import (
    AssignedNumber,
    AvailableNumber,
    Held,
    HoldEnded,
    Id,
    Placed,
    Release,
    Released,
    Result,
    Routed,
    Write,
)

# ---------------------------------------------------------------- orders


def order_response(placed: Placed) -> bytes:
    """The serialized response to an order that was placed."""
    return OrderNumbersResponse(success=True, data=_placed_numbers(placed)).SerializeToString()


def preview_response(placed: Placed) -> bytes:
    """The serialized response to an order that was only checked."""
    rows = _placed_numbers(placed)
    for row in rows:
        for name in ("id", "created_at", "updated_at"):
            row.ClearField(name)
    meta = orders_pb2.OrderPreview(total_price=format_amount(placed.total_micros))
    return OrderNumbersResponse(success=True, data=rows, meta=meta).SerializeToString()


def earlier_order_response(order_id: Id, numbers: Iterable[AssignedNumber]) -> bytes:
    """The serialized response to GetOrder and FindOrder, whose messages are alike."""
    return orders_pb2.GetOrderResponse(
        success=True, data=map(_phone_number, numbers), meta=orders_pb2.OrderReference(order_id=order_id)
    ).SerializeToString()


def bulk_order_response(order_id: Id, quantity: int, numbers: Sequence[PhoneNumber]) -> bytes:
    """The serialized response to a bulk order, now or later: BulkOrderNumbers and GetBulkOrder have alike messages."""
    order = orders_pb2.BulkOrder(
        order_id=order_id,
        status="complete",
        quantity=quantity,
        assigned_count=len(numbers),
        assigned_numbers=numbers,
    )
    return orders_pb2.BulkOrderNumbersResponse(success=True, data=order).SerializeToString()


def earlier_bulk_order_response(order_id: Id, quantity: int, numbers: Iterable[AssignedNumber]) -> bytes:
    """The serialized response to GetBulkOrder."""
    return bulk_order_response(order_id, quantity, [_phone_number(number) for number in numbers])


def _placed_numbers(placed: Placed) -> list[PhoneNumber]:
    order, at = placed.order, _whole_seconds(placed.at)
    return [
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
    ]


# ---------------------------------------------------------------- other writes


def response_to(write: Write, result: Result) -> bytes:
    """The serialized response to a write that is not an order of named numbers."""
    match result:
        case Held():
            return hold_response(result)
        case HoldEnded():
            return _hold_ended_response(result)
        case Routed():
            return number_response(result.after)
        case Released():
            is_bulk = isinstance(write.action, Release) and write.action.is_bulk
            return _bulk_release_response(result) if is_bulk else _release_response(result)
        case Placed():
            return bulk_order_response(write.id, len(result.numbers), _placed_numbers(result))


def hold_response(held: Held) -> bytes:
    """The serialized response to HoldNumbers and GetHold, whose messages are alike."""
    data = inventory_pb2.Hold(
        id=held.id,
        numbers=held.numbers,
        created_at=_whole_seconds(held.created_at),
        expires_at=_whole_seconds(held.expires_at),
    )
    return inventory_pb2.HoldNumbersResponse(success=True, data=data).SerializeToString()


def _hold_ended_response(ended: HoldEnded) -> bytes:
    data = inventory_pb2.ReleasedHold(status="released", numbers=ended.numbers)
    return inventory_pb2.ReleaseHoldResponse(success=True, data=data).SerializeToString()


def _release_response(released: Released) -> bytes:
    data = phone_numbers_pb2.ReleasedNumber(status="released", available_at=_whole_seconds(released.available_at))
    return phone_numbers_pb2.ReleaseNumberResponse(success=True, data=data).SerializeToString()


def _bulk_release_response(released: Released) -> bytes:
    data = phone_numbers_pb2.ReleaseResult(
        released=[number.id for number in released.released],
        already_released=released.already_released,
        unknown=released.unknown,
    )
    return phone_numbers_pb2.BulkReleaseNumbersResponse(success=True, data=data).SerializeToString()


# ---------------------------------------------------------------- reads


def search_response(numbers: Iterable[AvailableNumber]) -> bytes:
    """The serialized response to a search."""
    rows = [
        inventory_pb2.AvailableNumber(
            number=each.number,
            number_type=each.number_type,
            sms_enabled=each.sms_enabled,
            mms_enabled=each.mms_enabled,
            price=format_amount(each.price_micros),
        )
        for each in numbers
    ]
    return inventory_pb2.SearchNumbersResponse(success=True, data=rows).SerializeToString()


def list_response(numbers: Iterable[AssignedNumber], limit: int, next_cursor: str | None) -> bytes:
    """The serialized response to a page of a list."""
    cursor = Value(null_value=NULL_VALUE) if next_cursor is None else Value(string_value=next_cursor)
    meta = phone_numbers_pb2.PageMeta(limit=limit, next_cursor=cursor)
    data = map(_phone_number, numbers)
    return phone_numbers_pb2.ListNumbersResponse(success=True, data=data, meta=meta).SerializeToString()


def number_response(number: AssignedNumber) -> bytes:
    """The serialized response to every call that returns one number. Their messages are alike."""
    return phone_numbers_pb2.GetNumberResponse(success=True, data=_phone_number(number)).SerializeToString()


def _phone_number(number: AssignedNumber) -> PhoneNumber:
    fields: dict[str, Any] = number._asdict()
    for name in ("created_at", "updated_at"):
        fields[name] = _whole_seconds(fields[name])
    return PhoneNumber(**fields)  # a field that is None stays unset


def _whole_seconds(at: datetime) -> Timestamp:
    # The contract has no fractions, and JSON would print those that are there.
    return Timestamp(seconds=int(at.timestamp()))
