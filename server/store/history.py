"""The history of a number: what is stored about it, and what happened by time alone.

Nothing is written when a hold or a rest ends, so those ends are computed here. The purchases are in the orders and
their assignments. All else is in `number_event`. What an archive has taken is not told, only that there may be more.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Row, text

from server.errors import OperatorError
from server.rules.values import Routing


class Event(NamedTuple):
    """Something that happened to a number, and by whom. What is not known, or does not apply, is None."""

    at: datetime
    kind: str
    """One of tables.EVENT_KINDS, or assigned, hold_expired, available or archived."""
    details: Mapping[str, Any] = MappingProxyType({})
    organization_id: UUID | None = None
    api_key_id: UUID | None = None
    request_id: str | None = None
    is_computed: bool = False
    """Whether it happened by time alone, so that nothing was written."""


class Assigned(NamedTuple):
    """A purchase of the number. Its settings are the present ones."""

    at: datetime
    order_id: UUID
    assignment_id: UUID
    price_micros: int | None
    routing: Routing
    organization_id: UUID
    api_key_id: UUID
    request_id: str


class History(NamedTuple):
    """What happened to a number, oldest first. Before the event `archived` some of it may be missing."""

    imported_at: datetime | None
    """None if a version of the program imported it that did not store the time."""
    events: list[Event]


def history(connection: Connection, number: str) -> History:
    """Return the number's history. Raises OperatorError if it is not in the inventory.

    It must be the first that its transaction does.
    """
    # All statements see one snapshot. A release between two of them would be an event without its order.
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
    named = {"number": number}
    found = connection.execute(text(NUMBER), named).one_or_none()
    if found is None:
        raise OperatorError(f"no number {number}")
    events = [_event(row) for row in connection.execute(text(EVENTS), named)]
    orders = [_assigned(row) for row in connection.execute(text(ORDERS), named)]
    stored = sorted(chain(events, (_order_event(order, events) for order in orders)), key=_time)
    told = list(with_ends(stored, found.now))
    if found.archived_before and (found.imported_at is None or found.imported_at < found.archived_before):
        told = _archived(told, found.archived_before)
    return History(found.imported_at, told)


def with_ends(stored: Sequence[Event], now: datetime) -> Iterator[Event]:
    """The stored events, and between them the ends of holds and rests, up to now."""
    kept = _Kept()
    for event in stored:
        yield from kept.ends(event.at)
        yield event
        kept.follow(event)
    yield from kept.ends(now)


def routing_at_order(order: Assigned, events: Sequence[Event]) -> dict[str, Any]:
    """The settings in the order. The first change of each one after it has the value from before."""
    later = [event for event in events if event.kind in ("routed", "released") and event.at > order.at]
    routing = order.routing._asdict()
    # The latest first, so that the first change is applied last.
    for event in sorted(later, key=_time, reverse=True):
        routing |= event.details["before"]
    return routing


def _archived(events: Sequence[Event], before: datetime) -> list[Event]:
    """The events, with a mark where they begin to be complete. Before it an end may have been another one."""
    known = [event for event in events if event.at >= before or not event.is_computed]
    return sorted([*known, Event(before, "archived")], key=_time)


class _Kept:
    """Until when a number is kept for one organization."""

    def __init__(self) -> None:
        self._hold_until: datetime | None = None
        self._rest_until: datetime | None = None
        self._free_at: datetime | None = None

    def follow(self, event: Event) -> None:
        """Take in what a stored event says."""
        match event.kind:
            case "held":
                self._hold_until = event.details["expires_at"]
                self._free_at = self._after_rest(event.details["expires_at"])
            case "hold_released":
                self._hold_until = None
                self._free_at = self._after_rest(event.at)
            case "released":
                self._rest_until = self._free_at = event.details["available_at"]
            case "assigned":
                self._hold_until = self._rest_until = self._free_at = None

    def ends(self, now: datetime) -> Iterator[Event]:
        """What has ended by now. Each end is returned once."""
        if self._hold_until and self._hold_until <= now:
            yield Event(self._hold_until, "hold_expired", is_computed=True)
            self._hold_until = None
        if self._free_at and self._free_at <= now:
            yield Event(self._free_at, "available", is_computed=True)
            self._free_at = None

    def _after_rest(self, at: datetime) -> datetime:
        return max(at, self._rest_until or at)


def _event(row: Row[Any]) -> Event:
    details: dict[str, Any] = {}
    match row.kind:
        case "held":
            details = {"hold_id": row.id, "expires_at": datetime.fromisoformat(row.after["expires_at"])}
        case "released":
            available_at = datetime.fromisoformat(row.after["available_at"])
            details = {"available_at": available_at, "before": row.before}
        case "routed" | "changed":
            details = {"before": row.before, "after": row.after}
    return Event(row.created_at, row.kind, details, row.organization_id, row.api_key_id, row.request_id)


def _assigned(row: Row[Any]) -> Assigned:
    return Assigned(**{**row._mapping, "routing": Routing(**row.routing)})


def _order_event(order: Assigned, events: Sequence[Event]) -> Event:
    details = {
        "order_id": order.order_id,
        "assignment_id": order.assignment_id,
        "price_micros": order.price_micros,
        "routing": routing_at_order(order, events),
    }
    return Event(order.at, "assigned", details, order.organization_id, order.api_key_id, order.request_id)


def _time(event: Event) -> datetime:
    return event.at


NUMBER = """
    SELECT imported_at, clock_timestamp() AS now, (SELECT max(archived_before) FROM archive) AS archived_before
    FROM phone_number
    WHERE number = :number
"""

EVENTS = """
    SELECT id, kind, organization_id, api_key_id, request_id, before, after, created_at
    FROM number_event
    WHERE number = :number
"""

# No index leads from a number to its released assignments. Each release is an event that names the organization.
ORDERS = """
    SELECT a.created_at AS at, a.order_id, a.id AS assignment_id, a.price_micros, json_build_object(
        'inbound_url', a.inbound_url, 'status_url', a.status_url, 'label', a.label, 'campaign_id', a.campaign_id
      ) AS routing, a.organization_id, o.api_key_id, o.request_id
    FROM (
      SELECT * FROM assignment WHERE number = :number AND released_at IS NULL
      UNION ALL
      SELECT a.*
      FROM number_event e JOIN assignment a USING (organization_id, number)
      WHERE number = :number AND e.kind = 'released' AND a.released_at = e.created_at
    ) a
    JOIN orders o ON (o.organization_id, o.id) = (a.organization_id, a.order_id)
"""
