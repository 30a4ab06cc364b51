"""The clients of the fault suite at both edges, and what they have measured when a fault is over."""

import json
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from sqlalchemy import text

from deploy.ha.cluster import EDGES
from tests.faults.workload import CALL_SECONDS_MAX, NO_RESPONSE, REST_SECONDS_MAX, Outcome, SentOrder, Workload
from tests.support.callers import METHOD, ROUTE

NUMBERS = 60_000
WAIT_SECONDS_MAX = 180
LATE_SECONDS = 1.0
"""How much later than its deadline a response may come: two cores run seven hosts and all clients."""


class EdgeLogs:
    """The calls that the edges have logged. Envoy writes them up to ten seconds later."""

    def __init__(self, cluster):
        self._read = {cluster.hosts[name].folder / "edge.log": 0 for name in EDGES}

    def new_calls(self) -> list[dict]:
        """The calls that were not returned before."""
        calls = []
        for path, begin in self._read.items():
            lines, _, _ = path.read_bytes()[begin:].rpartition(b"\n")
            self._read[path] = begin + len(lines)
            for line in lines.splitlines():
                with suppress(ValueError):  # an edge that was killed leaves a part of a line
                    calls.append(json.loads(line))
        return [call for call in calls if "request_id" in call]


def late_calls(calls: list[dict]) -> list[dict]:
    """Those of the orders that took longer than their deadline at an edge."""
    limits = {ROUTE: REST_SECONDS_MAX, METHOD: CALL_SECONDS_MAX}
    orders = [call for call in calls if call.get("path") in limits]
    return [call for call in orders if call["ms"] > 1000 * (limits[call["path"]] + LATE_SECONDS)]


@dataclass(frozen=True)
class Measured:
    """What one fault did. From `lost` to `late` all should be 0."""

    fault: str
    gap_seconds: float
    """The longest time without a sale."""
    sales: int
    lost: int
    """Orders that were acknowledged, and are not there exactly as in their response."""
    doubled: int
    """Numbers that were acknowledged to two orders, or are assigned twice."""
    sold_after_503: int
    """Orders that are there, though each of their responses said that they were not carried out."""
    late: int
    """Calls that an edge ended after their deadline."""
    late_at_clients: int
    """Responses that a client has seen after the deadline of their call. A client without CPU is late itself."""


class Load(Workload):
    """Clients of both edges."""

    def __init__(self, engine, edges, *, clients, clients_without_keys):
        super().__init__(
            engine,
            edges,
            numbers=NUMBERS,
            deadlines=(0.3, CALL_SECONDS_MAX),
            clients=clients,
            clients_without_keys=clients_without_keys,
        )

    def wait_for_orders(self, count: int, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        super().wait_for_orders(count, seconds_max)

    def measured(self, fault: str, since: float, late: int) -> Measured:
        """Compare what the clients received with the database, when all of them have ended."""
        assigned = self._assigned()
        keys = self._stored_keys()
        orders = [*self.sent, *self.sent_once]
        acknowledged = [order for order in orders if order.sales]
        owners = {}
        for order in acknowledged:
            for number in order.numbers:
                owners.setdefault(number, set()).add((order.customer.id, order.key or id(order)))
        twice = [rows for rows in assigned.values() if len(rows) > 1]
        return Measured(
            fault,
            self._gap_seconds(since),
            len(acknowledged),
            lost=sum(not _is_there(order, assigned) for order in acknowledged),
            doubled=len(twice) + sum(len(orders) > 1 for orders in owners.values()),
            sold_after_503=sum(_is_there_all_the_same(order, self._all_of(order), assigned, keys) for order in orders),
            late=late,
            late_at_clients=len(self.late),
        )

    @property
    def late(self) -> list[Outcome]:
        """Responses that a client has seen after the deadline of their call."""
        return [outcome for order in [*self.sent, *self.sent_once] for outcome in order.outcomes if _is_late(outcome)]

    def _all_of(self, order: SentOrder) -> list[SentOrder]:
        """The orders with its key: a client may have sent one again later."""
        if order.key is None:
            return [order]
        if not hasattr(self, "_by_key"):
            self._by_key = {}
            for each in self.sent:
                self._by_key.setdefault((each.customer.id, each.key), []).append(each)
        return self._by_key[order.customer.id, order.key]

    def _gap_seconds(self, since: float) -> float:
        ended = [next(o.ended for o in each.outcomes if o.code == "OK") for each in self._with_sales()]
        times = sorted(time for time in ended if time > since - 1)
        return max(after - before for before, after in pairwise(times))

    def _with_sales(self) -> list[SentOrder]:
        return [order for order in [*self.sent, *self.sent_once] if order.sales]

    def _assigned(self) -> dict[str, list[tuple]]:
        """The live assignments of each number: organization, id."""
        query = text("""
            SELECT number, organization_id, id::text
            FROM assignment
            WHERE organization_id = ANY(:ids) AND released_at IS NULL
        """)
        ids = [customer.id for customer in (*self._customers, *self._customers_without_keys)]
        found = {}
        with self.engine.connect() as connection:
            for number, organization, id_ in connection.execute(query, {"ids": ids}):
                found.setdefault(number, []).append((organization, id_))
        return found

    def _stored_keys(self) -> set[tuple]:
        query = text("SELECT organization_id, key FROM idempotency_key WHERE organization_id = ANY(:ids)")
        with self.engine.connect() as connection:
            rows = connection.execute(query, {"ids": [customer.id for customer in self._customers]})
            return {tuple(row) for row in rows}


def _is_there(order: SentOrder, assigned) -> bool:
    return all(
        assigned.get(row["number"]) == [(order.customer.id, row["id"])] for rows in order.sales for row in rows
    ) and all([row["number"] for row in rows] == order.numbers for rows in order.sales)


def _is_there_all_the_same(order: SentOrder, sent_with_key, assigned, keys) -> bool:
    if not all(each.is_certainly_not_placed for each in sent_with_key):
        return False
    if order.key is not None:
        return (order.customer.id, order.key) in keys
    return any(number in assigned for number in order.numbers)


def _is_late(outcome: Outcome) -> bool:
    # A call without a response is no answer at all: its host is lost, or its client has given up.
    return outcome.code != NO_RESPONSE and outcome.ended - outcome.began > outcome.seconds_max + LATE_SECONDS
