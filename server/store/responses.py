"""Stores the responses to writes under their idempotency keys."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from server.rules.values import Order, Write
from server.store.statements import BoundStatement, JsonRows, load

STORE_RESPONSES = load("idempotency", "store_responses")


class _Stored(NamedTuple):
    """A row to store under an idempotency key. Bytes are texts that PostgreSQL reads as bytea."""

    write: Order | Write
    fingerprint: str
    response: str


STORED_ROWS = JsonRows(
    STORE_RESPONSES,
    "responses",
    organization_id="write.organization_id",
    key="write.idempotency.key",
    order_id="write.id",
    method="write.idempotency.method",
)


def store(responses: Iterable[tuple[Order | Write, bytes]], at: datetime) -> list[BoundStatement]:
    """The statements that store the responses of those writes that have an idempotency key."""
    rows = [_stored(write, response) for write, response in responses if write.idempotency]
    return [STORE_RESPONSES(responses=STORED_ROWS.json(rows), stored_at=at.isoformat())] if rows else []


def _stored(write: Order | Write, response: bytes) -> _Stored:
    assert write.idempotency  # noqa: S101
    return _Stored(write, f"\\x{write.idempotency.fingerprint.hex()}", f"\\x{response.hex()}")
