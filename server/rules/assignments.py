"""The decisions on numbers that an organization has: what it may change, and what it gives back.

As for orders, the caller has read the state under the lock of the organization.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from server.errors import Code, Refusal
from server.rules.access import campaign_refusal
from server.rules.values import AssignedNumber, Id, Release, Released, Route, Routed, State


class Known(NamedTuple):
    """A number that the organization has or had."""

    number: AssignedNumber
    is_live: bool
    is_resting: bool
    """Whether it was given back, and still waits for its former owner only."""


def route(organization_id: Id, action: Route, known: Mapping[Id, Known], state: State) -> Routed | Refusal:
    """Change the routing of a number. An unknown or released number is NOT_FOUND."""
    found = known.get(action.assignment_id)
    if found is None or not found.is_live:
        return Refusal(Code.NOT_FOUND)
    refusal = campaign_refusal(organization_id, action.changes.get("campaign_id"), state)
    if refusal:
        return refusal
    before = found.number
    after = before._replace(**action.changes)
    # The setting of equal values is no change: it has no place in the history.
    return Routed(before, after if after == before else after._replace(updated_at=state.now))


def release(action: Release, known: Mapping[Id, Known], now: datetime) -> Released | Refusal:
    """Give numbers back. An id that is not a number of the organization refuses a release of one number only."""
    ids = dict.fromkeys(action.assignment_ids)
    released = [known[id_].number for id_ in ids if id_ in known and known[id_].is_live]
    if not action.is_bulk and not released:
        return Refusal(Code.NOT_FOUND)
    already = [id_ for id_ in ids if id_ in known and not known[id_].is_live and known[id_].is_resting]
    mentioned = {*already, *(number.id for number in released)}
    unknown = [id_ for id_ in ids if id_ not in mentioned]
    return Released(released, already, unknown, now + timedelta(milliseconds=action.rest_ms))
