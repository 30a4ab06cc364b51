"""A part of the check: each stored response is a success of its RPC. That of an order has exactly its assignments.

The assignments of an order exist as long as its stored response. So they may be read after it, in other statements.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import UUID

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection, Row

from ordernumbers.v1.phone_number_service_pb2 import DESCRIPTOR
from server.store.engine import execute_alone

RESPONSES_ROWS = 500
"""The stored responses that one statement reads. Each has up to 100 numbers."""

METHODS = DESCRIPTOR.services_by_name["PhoneNumberService"].methods_by_name

# An order that does not exist is a finding of its own (invariants.py).
RESPONSES = """
    SELECT i.organization_id, i.key, i.order_id, i.answer, o.number_count,
      coalesce(i.method, 'OrderNumbers') AS method, o.id IS NOT NULL AS has_order
    FROM idempotency_key i LEFT JOIN orders o ON (o.organization_id, o.id) = (i.organization_id, i.order_id)
    WHERE (i.organization_id, i.key) > (:organization_id, :key) AND answer <> ''
    ORDER BY i.organization_id, i.key
    LIMIT :rows
"""
ASSIGNMENTS_BY_ID = """
    SELECT a.organization_id, a.order_id, a.id, a.number
    FROM unnest(CAST(:organization_ids AS uuid[]), CAST(:ids AS uuid[])) AS named (organization_id, id)
    JOIN assignment a USING (organization_id, id)
"""


def wrong_responses(connection: Connection) -> Iterator[str]:
    """Return a sentence for each stored response that is wrong."""
    after: dict[str, Any] = {"organization_id": UUID(int=0), "key": ""}
    while page := execute_alone(connection, RESPONSES, {**after, "rows": RESPONSES_ROWS}).all():
        after = {"organization_id": page[-1].organization_id, "key": page[-1].key}
        yield from _wrong_orders(connection, [stored for stored in page if _is_of_order(stored) and stored.has_order])
        for stored in page:
            if not _is_of_order(stored) and not _is_success(stored):
                yield f"{_stored(stored)} that is not one of {stored.method}"


def _is_of_order(stored: Row[Any]) -> bool:
    return stored.method in ("OrderNumbers", "BulkOrderNumbers")


def _is_success(stored: Row[Any]) -> bool:
    if stored.method not in METHODS:  # of a newer server
        return True
    response = _parsed(stored)
    return response is not None and {"success", "data"} == {field.name for field, _ in response.ListFields()}


def _parsed(stored: Row[Any]) -> Any:
    """The response as a message of its RPC. None if it is not one."""
    try:
        return GetMessageClass(METHODS[stored.method].output_type).FromString(stored.answer)
    except DecodeError:
        return None


def _wrong_orders(connection: Connection, page: Sequence[Row[Any]]) -> Iterator[str]:
    """Return a sentence for each response that does not have exactly the assignments of its order."""
    named = [_assignments_in(stored) for stored in page]
    existing = _existing(connection, zip((stored.organization_id for stored in page), named, strict=True))
    for stored, rows in zip(page, named, strict=True):
        order = stored.organization_id, stored.order_id
        # number_count is null in orders of a server that did not know the column.
        is_whole = len(rows) == len(set(rows)) == (stored.number_count or len(rows)) > 0
        if not is_whole or not existing.issuperset((*order, *row) for row in rows):
            yield f"{_stored(stored)} that does not match order {stored.order_id}"


def _assignments_in(stored: Row[Any]) -> list[tuple[UUID, str]]:
    """Return the assignments in the response with their numbers. Empty if it is not a response to an order."""
    response = _parsed(stored)
    if response is None:
        return []
    rows = response.data if stored.method == "OrderNumbers" else response.data.assigned_numbers
    try:
        return [(UUID(row.id), row.number) for row in rows]
    except ValueError:
        return []


def _existing(
    connection: Connection, named: Iterable[tuple[UUID, list[tuple[UUID, str]]]]
) -> set[tuple[UUID, UUID, UUID, str]]:
    """Return organization, order, id and number of those assignments that exist."""
    keys = [(organization_id, id_) for organization_id, rows in named for id_, _ in rows]
    values = {"organization_ids": [key[0] for key in keys], "ids": [key[1] for key in keys]}
    return {tuple(row) for row in execute_alone(connection, ASSIGNMENTS_BY_ID, values)}


def _stored(stored: Row[Any]) -> str:
    return f"an idempotency key of organization {stored.organization_id} has a stored response"
