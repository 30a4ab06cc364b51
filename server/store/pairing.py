"""A part of the check: every order has exactly the assignments and the ledger entry that its row describes.

No index leads from an order to its assignments or its ledger entry. Such an index would make every order slower, and
nothing else needs it. So the check reads orders and rows side by side, page by page, in short statements. It reads them
once if no orders run at the same time, and at most twice. The time is linear in the rows, whatever the order of their
ids.

An archive may delete an order with its rows meanwhile, or its ledger entry alone. So an order is wrong only if it still
needs its rows after they were read.
"""

from collections.abc import Container, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from server.store.engine import execute_alone

OrderId = str
"""A UUID as text. Every row is compared by it, and text compares much faster than UUID objects."""
OrderSum = tuple[OrderId, int | None, int]
"""An order's id, a row count, and an amount of money in micros."""

_NIL_UUID = UUID(int=0)


class RowsOfOrders(NamedTuple):
    """One kind of rows that belong to orders: how to read both, and how to describe an error.

    `orders` and `rows` read pages of (key, order's id, count, micros). For an order, these are the count and the sum
    that its row describes. For a row, the count is 1. The count is null if the order's row has no count, both for the
    order and for its rows. Such an order must have at least one row.
    """

    orders: str
    rows: str
    first_key: Any
    missing: str
    miscounted: str
    needed: str
    """Reads which of these orders need the rows."""


ASSIGNMENTS_OF_ORDERS = RowsOfOrders(
    orders="""
        SELECT id, id::text, number_count, CASE WHEN number_count IS NULL THEN 0 ELSE total_micros END
        FROM orders
        WHERE organization_id = :organization_id AND id > :after
        ORDER BY orders.id
        LIMIT :rows
    """,
    rows="""
        SELECT a.id, order_id::text, CASE WHEN number_count IS NOT NULL THEN 1 END,
          CASE WHEN number_count IS NULL THEN 0 ELSE coalesce(price_micros, 0) END
        FROM assignment a LEFT JOIN orders o ON (o.organization_id, o.id) = (a.organization_id, order_id)
        WHERE a.organization_id = :organization_id AND a.id > :after
        ORDER BY a.id
        LIMIT :rows
    """,
    first_key=_NIL_UUID,
    missing="has no assignments",
    miscounted="has {expected} numbers but {found} assignments",
    needed="""
        SELECT id::text FROM orders WHERE organization_id = :organization_id AND id = ANY (CAST(:ids AS uuid[]))
    """,
)
# The ledger entries of orders until `entries_until` are archived. An order is as old as its entry.
LEDGER_ENTRIES_OF_ORDERS = RowsOfOrders(
    orders="""
        SELECT id, CASE WHEN entries_until IS NULL OR created_at > entries_until THEN id::text END, 1, 0
        FROM orders LEFT JOIN archive USING (organization_id)
        WHERE organization_id = :organization_id AND id > :after
        ORDER BY orders.id
        LIMIT :rows
    """,
    rows="""
        SELECT ledger_entry.entry_no,
          CASE WHEN entries_until IS NULL OR created_at > entries_until THEN order_id::text END, 1, 0
        FROM ledger_entry LEFT JOIN archive USING (organization_id)
        WHERE organization_id = :organization_id AND ledger_entry.entry_no > :after
        ORDER BY ledger_entry.entry_no
        LIMIT :rows
    """,
    first_key=0,
    missing="has no ledger entry",
    miscounted="has {found} ledger entries",
    needed="""
        SELECT id::text
        FROM orders LEFT JOIN archive USING (organization_id)
        WHERE organization_id = :organization_id AND id = ANY (CAST(:ids AS uuid[]))
          AND (entries_until IS NULL OR created_at > entries_until)
    """,
)


class Pairing:
    """The orders that still miss rows, and the rows whose order is not read yet. Both are few if read side by side."""

    def __init__(self) -> None:
        self.unpaired: dict[OrderId, tuple[int, int]] = {}
        """The count and the micros that are still missing per order. They are negative if the rows came first."""
        self.missing_rows = 0
        """The sum of the counts in `unpaired`."""
        self._last_order_id = ""

    def add_order(self, order_id: OrderId, count: int | None, micros: int) -> None:
        self._last_order_id = order_id
        if count is None:
            # An order without a count expects the rows that were read already, or else one.
            negative_count, _ = self.unpaired.get(order_id, (-1, 0))
            count = -negative_count
        self._add(order_id, count, micros)

    def add_rows(self, rows: Iterable[OrderSum]) -> None:
        for order_id, count, micros in rows:
            # An order without a count expects only one row. If it has that row, it is not in `unpaired` any more.
            if count is not None or order_id > self._last_order_id or order_id in self.unpaired:
                self._add(order_id, -1, -micros)

    def _add(self, order_id: OrderId, count: int, micros: int) -> None:
        self.missing_rows += count
        count_before, micros_before = self.unpaired.pop(order_id, (0, 0))
        total = count_before + count, micros_before + micros
        if total != (0, 0):
            self.unpaired[order_id] = total


def wrong_orders(connection: Connection, page_rows: int) -> Iterator[str]:
    """Return a sentence for each order whose assignments or ledger entry differ from its row."""
    for organization_id in execute_alone(connection, "SELECT id FROM organization ORDER BY id").scalars().all():
        for kind in (ASSIGNMENTS_OF_ORDERS, LEDGER_ENTRIES_OF_ORDERS):
            pages = Pages(connection, page_rows, organization_id, kind)
            if suspects := _suspects(pages):
                yield from _findings(pages, suspects)


class Pages(NamedTuple):
    """Reads the orders of an organization and one kind of their rows, page by page."""

    connection: Connection
    page_rows: int
    organization_id: UUID
    kind: RowsOfOrders

    def orders(self) -> Iterator[list[OrderSum]]:
        return self._read(self.kind.orders, _NIL_UUID)

    def rows(self) -> Iterator[list[OrderSum]]:
        return self._read(self.kind.rows, self.kind.first_key)

    def needed(self, order_ids: list[OrderId]) -> set[OrderId]:
        """Which of these orders still need their rows."""
        values = {"organization_id": self.organization_id, "ids": order_ids}
        return set(execute_alone(self.connection, self.kind.needed, values).scalars())

    def _read(self, sql: str, after: Any) -> Iterator[list[OrderSum]]:
        values = {"organization_id": self.organization_id, "rows": self.page_rows}
        while page := execute_alone(self.connection, sql, {**values, "after": after}).all():
            after = page[-1][0]
            # Ledger entries that add credit have no order. Orders whose entries are archived need none.
            yield [(order_id, count, micros) for _, order_id, count, micros in page if order_id is not None]


def _suspects(pages: Pages) -> Container[OrderId]:
    """Return the orders whose rows did not match. Some are correct: they were written while we read."""
    pairing = Pairing()
    row_pages = pages.rows()
    for orders in pages.orders():
        for order in orders:
            pairing.add_order(*order)
        # Read rows only as far as the orders need them, so that `unpaired` stays small.
        while pairing.missing_rows > 0 and (rows := next(row_pages, None)) is not None:
            pairing.add_rows(rows)
    for rows in row_pages:
        pairing.add_rows(rows)
    return pairing.unpaired


def _findings(pages: Pages, suspects: Container[OrderId]) -> Iterator[str]:
    """Return a sentence for each suspect that is really wrong."""
    # All orders are read before any row. An order commits together with its rows, so these rows are visible by then.
    orders = chain.from_iterable(pages.orders())
    expected = {order_id: (count, micros) for order_id, count, micros in orders if order_id in suspects}
    found = dict.fromkeys(expected, (0, 0))
    for order_id, _, micros in chain.from_iterable(pages.rows()):
        if order_id in found:
            found[order_id] = found[order_id][0] + 1, found[order_id][1] + micros
    wrong = {id_: finding for id_ in expected if (finding := _finding(pages.kind, expected[id_], found[id_]))}
    needed = pages.needed(list(wrong)) if wrong else set()
    for order_id, finding in wrong.items():
        if order_id in needed:
            yield f"order {order_id} {finding}"


def _finding(kind: RowsOfOrders, expected: tuple[int | None, int], found: tuple[int, int]) -> str | None:
    """Compare the count and the micros of an order with those of its rows. Return what is wrong, if anything."""
    if found[0] == 0:
        return kind.missing
    if expected[0] is None or expected == found:
        return None
    if found[0] != expected[0]:
        return kind.miscounted.format(expected=expected[0], found=found[0])
    return f"has a total of {expected[1]} micros, but its numbers cost {found[1]}"
