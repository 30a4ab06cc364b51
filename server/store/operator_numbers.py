"""What operators do with numbers: search, list and release them, and list holds. Each runs in the caller's transaction.

It runs the statements of the service, but without an API key. Every function raises OperatorError for what is unknown.
"""

import re
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, func, select, text
from uuid_utils.compat import uuid7

from server.errors import OperatorError
from server.rules.values import AssignedNumber, AvailableNumber, Criteria, Release, Released, State, Write
from server.store import admin, assignments, orders, queries, searches, transaction
from server.store.queries import Caller, Page
from server.store.searches import Search
from server.store.statements import BoundStatement, array
from server.store.tables import assignment

STATEMENTS = {
    each.name: each for each in (*orders.STATEMENTS, *assignments.STATEMENTS, *searches.STATEMENTS, *queries.STATEMENTS)
}
NO_KEY = str(UUID(int=0))
"""Stands for the API key in statements that look at one."""
_CALLER = re.compile(r"\bcaller AS \(\n.*?\n\)", re.DOTALL)
ANY_CALLER = "caller AS (SELECT NULL AS scopes)"


Values = tuple[Any, ...]
"""A row of a result."""


class ReleasedByOperator(NamedTuple):
    """A number that was taken from its organization, which alone can order it until `available_at`."""

    number: str
    assignment_id: UUID
    organization_id: UUID
    available_at: datetime


class LiveHold(NamedTuple):
    """A hold that has not ended, and the numbers that it still keeps."""

    id: UUID
    numbers: list[str]
    created_at: datetime
    expires_at: datetime


def search(connection: Connection, criteria: Criteria, quantity: int) -> list[AvailableNumber]:
    """Return up to `quantity` numbers that every organization can order now."""
    found = _read(connection, searches.search(Search(NO_KEY, criteria, quantity)))
    return [AvailableNumber(*row) for row in found]


def list_numbers(connection: Connection, organization_id: UUID, limit: int) -> tuple[list[AssignedNumber], bool]:
    """Return up to `limit` numbers of the organization, newest first, and whether it has more."""
    admin.show_organization(connection, organization_id)  # raises for an unknown id, which would otherwise list nothing
    caller = Caller(str(organization_id), NO_KEY, "")
    found = _read(connection, queries.list_numbers(caller, Page(limit, "", "", "", "")))
    numbers, next_cursor = queries.page_of(found, limit)
    return numbers, next_cursor is not None


def release(connection: Connection, number: str, rest_ms: int) -> ReleasedByOperator:
    """End the number's assignment, as its organization would with ReleaseNumber. It then rests for `rest_ms`."""
    # In the lock order of all writes: first the number, then its organization.
    locked = _run(connection, orders.LOCK_NUMBERS(numbers=array([number])))
    if not locked:
        raise OperatorError(f"no number {number}")
    live = _live_assignment(connection, number)
    if live is None:
        raise OperatorError(f"number {number} is not assigned")
    organization_id, assignment_id = live
    _run(connection, transaction.LOCK_ORGANIZATIONS(organization_ids=array([str(organization_id)])))
    released = _release(connection, organization_id, assignment_id, rest_ms)
    return ReleasedByOperator(number, assignment_id, organization_id, released.available_at)


def list_holds(connection: Connection, organization_id: UUID) -> list[LiveHold]:
    """Return the organization's holds that have not ended, oldest first."""
    admin.show_organization(connection, organization_id)  # raises for an unknown id
    return [LiveHold(*row) for row in connection.execute(text(LIVE_HOLDS), {"organization_id": organization_id})]


def _run(connection: Connection, bound: BoundStatement) -> list[Values]:
    """Run a statement of the service. If it looks at an API key, it does as if there were one."""
    statement = STATEMENTS[bound.name]
    result = connection.execute(text(_CALLER.sub(ANY_CALLER, statement.named_sql)), statement.named(bound))
    return [tuple(row) for row in result] if result.returns_rows else []


def _read(connection: Connection, bound: BoundStatement) -> list[Values]:
    """Run a read of the service. Return what it has found, without the scopes of the key."""
    return [row[1:] for row in _run(connection, bound) if row[1] is not None]


def _live_assignment(connection: Connection, number: str) -> tuple[UUID, UUID] | None:
    """The organization that has the number, and the assignment's id."""
    is_live = (assignment.c.number == number) & assignment.c.released_at.is_(None)
    row = connection.execute(select(assignment.c.organization_id, assignment.c.id).where(is_live)).one_or_none()
    return row and (row.organization_id, row.id)


def _release(connection: Connection, organization_id: UUID, assignment_id: UUID, rest_ms: int) -> Released:
    action = Release((str(assignment_id),), rest_ms, is_bulk=False)
    write = Write(str(uuid7()), str(organization_id), api_key_id="", scope="", request_id="", action=action)
    # Read after the organization is locked: a change of the routing locks nothing else.
    (assigned,) = (_run(connection, read) for read in assignments.RELEASE.read(write).values())
    now = connection.execute(select(func.clock_timestamp())).scalar_one()
    released = assignments.RELEASE.decide(write, assigned, State(now))
    assert isinstance(released, Released)  # noqa: S101  its number is locked
    for statement in assignments.RELEASE.write(write, released, now.isoformat()):
        _run(connection, statement)
    return released


LIVE_HOLDS = """
    SELECT id, ARRAY(
        SELECT held.number
        FROM unnest(hold.numbers) WITH ORDINALITY AS held (number, position)
        JOIN phone_number n ON n.number = held.number
        WHERE n.hold_id = hold.id AND n.held_by = hold.organization_id
        ORDER BY held.position
      ) AS numbers, created_at, expires_at
    FROM hold
    WHERE organization_id = :organization_id AND released_at IS NULL AND expires_at > clock_timestamp()
    ORDER BY id
"""
