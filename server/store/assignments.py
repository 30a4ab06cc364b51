"""Numbers that an organization has: the steps of the writes that route them and give them back."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from server.errors import Refusal
from server.rules import assignments
from server.rules.assignments import Known
from server.rules.values import AssignedNumber, Id, Release, Released, Route, Routed, Routing, State, Write
from server.store.connection import Row
from server.store.statements import BoundStatement, JsonRows, array, load
from server.store.steps import Steps, origin

LOCK_NUMBERS_OF_ASSIGNMENTS = load("assignment", "lock_numbers_of_assignments")
READ_ASSIGNMENTS = load("assignment", "read_assignments")
WRITE_ROUTING = load("assignment", "write_routing")
WRITE_RELEASES = load("assignment", "write_releases")
STATEMENTS = (LOCK_NUMBERS_OF_ASSIGNMENTS, READ_ASSIGNMENTS, WRITE_ROUTING, WRITE_RELEASES)


class _ReleasedRow(NamedTuple):
    """A number that is given back, with its routing until now."""

    id: Id
    number: str
    before: dict[str, str | None]


RELEASED_ROWS = JsonRows(WRITE_RELEASES, "released")


def _ids(write: Write) -> tuple[Id, ...]:
    if isinstance(write.action, Route):
        return (write.action.assignment_id,)
    assert isinstance(write.action, Release)  # noqa: S101
    return write.action.assignment_ids


def _lock_numbers(write: Write) -> dict[str, BoundStatement]:
    return {"locked": LOCK_NUMBERS_OF_ASSIGNMENTS(organization_id=write.organization_id, ids=array(_ids(write)))}


def _read(write: Write) -> dict[str, BoundStatement]:
    return {"rows": READ_ASSIGNMENTS(organization_id=write.organization_id, ids=array(_ids(write)))}


def _known(rows: Sequence[Row]) -> dict[Id, Known]:
    return {row[0]: Known(AssignedNumber(*row[:-2]), row[-2], row[-1]) for row in rows}


def _route(write: Write, rows: Sequence[Row], state: State) -> Routed | Refusal:
    assert isinstance(write.action, Route)  # noqa: S101
    return assignments.route(write.organization_id, write.action, _known(rows), state)


def _write_routing(write: Write, routed: Routed, at: str) -> list[BoundStatement]:
    before, after = routed.before.routing._asdict(), routed.after.routing._asdict()
    changed = [name for name in Routing._fields if before[name] != after[name]]
    if not changed:
        return []
    statement = WRITE_ROUTING(
        **origin(write),
        assignment_id=routed.after.id,
        routing=json.dumps(after),
        before=json.dumps({name: before[name] for name in changed}),
        after=json.dumps({name: after[name] for name in changed}),
        changed_at=at,
    )
    return [statement]


def _release(write: Write, rows: Sequence[Row], state: State) -> Released | Refusal:
    assert isinstance(write.action, Release)  # noqa: S101
    return assignments.release(write.action, _known(rows), state.now)


def _write_releases(write: Write, released: Released, at: str) -> list[BoundStatement]:
    if not released.released:
        return []
    # The whole routing, also what is not set: the history then shows where an assignment ends.
    rows = [_ReleasedRow(each.id, each.number, each.routing._asdict()) for each in released.released]
    available_at = released.available_at.isoformat()
    return [
        WRITE_RELEASES(**origin(write), released=RELEASED_ROWS.json(rows), released_at=at, available_at=available_at)
    ]


# It locks no number. Whoever changes an assignment locks its organization.
ROUTE = Steps(_route, _write_routing, read=_read)
RELEASE = Steps(_release, _write_releases, lock=_lock_numbers, read=_read)
