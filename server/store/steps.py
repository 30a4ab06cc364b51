"""The steps of a write that differ from one kind of write to another. writes.py has what they share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from server.errors import Refusal
from server.rules.values import Result, Retry, State, Write
from server.store.connection import Row
from server.store.statements import BoundStatement


def nothing(_: Write) -> dict[str, BoundStatement]:
    """No statement."""
    return {}


class Steps(NamedTuple):
    """How one kind of write is carried out, once its keys allow it."""

    decide: Callable[[Write, Sequence[Row], State], Result | Refusal | Retry]
    write: Callable[[Write, Any, str], list[BoundStatement]]
    """The statements that write the result. Their time is the last argument."""
    lock: Callable[[Write], dict[str, BoundStatement]] = nothing
    """Locks its numbers. The organization is locked after them. Only rows under the name `numbers` reach the state."""
    read: Callable[[Write], dict[str, BoundStatement]] = nothing
    """Reads what else decides it, under the name `rows`."""


def origin(write: Write) -> dict[str, str]:
    """The parameters of a statement that say who asked for the write."""
    return {
        "id": write.id,
        "organization_id": write.organization_id,
        "api_key_id": write.api_key_id,
        "request_id": write.request_id,
    }
