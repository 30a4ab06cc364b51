"""A part of the check: that each order has the assignments and the ledger entry that it says, and no more.

No index leads from an order to either: each would make every sale dearer, and nothing else needs one. So orders and
what comes with them are read side by side, once if nothing is sold meanwhile and never more than twice, in short
statements. The time is linear in the rows, in whatever order their ids are.
"""

from collections.abc import Container, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

OrderId = str
"""As text, which is compared in a fraction of the time: every row is."""
Entry = tuple[OrderId, int | None, int]
"""An order's id, how many rows, and of what money."""

_NIL = UUID(int=0)


class Kind(NamedTuple):
    """Rows that come with an order: how many, and of what value, their order says. No index leads from it to them.

    `orders` and `rows` read pages of (key, order's id, count, micros), where a row's count is 1. The count is null for
    an order that does not say, and for its rows: of those it must have one at least.
    """

    orders: str
    rows: str
    first: Any
    missing: str
    miscounted: str


ASSIGNMENTS_OF_ORDER = Kind(
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
    first=_NIL,
    missing="has no assignment",
    miscounted="is of {wanted} numbers, and has {found} assignments",
)
ENTRIES_OF_ORDER = Kind(
    orders="""
        SELECT id, id::text, 1, 0
        FROM orders
        WHERE organization_id = :organization_id AND id > :after
        ORDER BY orders.id
        LIMIT :rows
    """,
    rows="""
        SELECT entry_no, order_id::text, 1, 0
        FROM ledger_entry
        WHERE organization_id = :organization_id AND entry_no > :after
        ORDER BY entry_no
        LIMIT :rows
    """,
    first=0,
    missing="has 0 ledger entries",
    miscounted="has {found} ledger entries",
)


class Pairing:
    """Orders whose rows have not all been met, and rows met before their order: few, if both are read in step."""

    def __init__(self) -> None:
        self.open: dict[OrderId, tuple[int, int]] = {}
        self.owed = 0
        """How many rows the orders are waiting for; below zero, rows are waiting for orders."""
        self._upto = ""

    def add_order(self, order_id: OrderId, count: int | None, micros: int) -> None:
        self._upto = order_id
        if count is None:
            ahead, _ = self.open.get(order_id, (-1, 0))
            count = -ahead
        self._add(order_id, count, micros)

    def add_rows(self, rows: Iterable[Entry]) -> None:
        for order_id, count, micros in rows:
            # An order that does not say its count wants one row, and may have met it already.
            if count is not None or order_id > self._upto or order_id in self.open:
                self._add(order_id, -1, -micros)

    def _add(self, order_id: OrderId, count: int, micros: int) -> None:
        self.owed += count
        count_before, micros_before = self.open.pop(order_id, (0, 0))
        total = count_before + count, micros_before + micros
        if total != (0, 0):
            self.open[order_id] = total


def wrong_orders(connection: Connection, page_rows: int) -> Iterator[str]:
    """Orders that have not what they should have, in assignments and in the ledger."""
    for organization_id in connection.execute(text("SELECT id FROM organization ORDER BY id")).scalars().all():
        for kind in (ASSIGNMENTS_OF_ORDER, ENTRIES_OF_ORDER):
            reader = Reader(connection, page_rows, organization_id, kind)
            if suspects := _suspects(reader):
                yield from _judged(reader, suspects)


class Reader(NamedTuple):
    """Reads the orders of an organization, and the rows of one kind that come with them, page by page."""

    connection: Connection
    page_rows: int
    organization_id: UUID
    kind: Kind

    def orders(self) -> Iterator[list[Entry]]:
        return self._pages(self.kind.orders, _NIL)

    def rows(self) -> Iterator[list[Entry]]:
        return self._pages(self.kind.rows, self.kind.first)

    def _pages(self, sql: str, after: Any) -> Iterator[list[Entry]]:
        keys = {"organization_id": self.organization_id, "rows": self.page_rows}
        while page := self.connection.execute(text(sql), {**keys, "after": after}).all():
            after = page[-1][0]
            yield [(order_id, count, micros) for _, order_id, count, micros in page if order_id is not None]


def _suspects(reader: Reader) -> Container[OrderId]:
    """Orders that were read without all that comes with them. Sales going on meanwhile leave some that are sound."""
    pairing = Pairing()
    row_pages = reader.rows()
    for orders in reader.orders():
        for order in orders:
            pairing.add_order(*order)
        while pairing.owed > 0 and (rows := next(row_pages, None)) is not None:
            pairing.add_rows(rows)
    for rows in row_pages:
        pairing.add_rows(rows)
    return pairing.open


def _judged(reader: Reader, suspects: Container[OrderId]) -> Iterator[str]:
    """Of the suspects, those that are wrong. Orders are read wholly first: whatever comes with one is there by then."""
    orders = chain.from_iterable(reader.orders())
    wanted = {order_id: (count, micros) for order_id, count, micros in orders if order_id in suspects}
    found = dict.fromkeys(wanted, (0, 0))
    for order_id, _, micros in chain.from_iterable(reader.rows()):
        if order_id in found:
            found[order_id] = found[order_id][0] + 1, found[order_id][1] + micros
    for order_id, (count, micros) in wanted.items():
        if finding := _finding(reader.kind, (count, micros), found[order_id]):
            yield f"order {order_id} {finding}"


def _finding(kind: Kind, wanted: tuple[int | None, int], found: tuple[int, int]) -> str | None:
    """What is wrong, if these are the count and the money that the order says, and those that there are."""
    if found[0] == 0:
        return kind.missing
    if wanted[0] is None or wanted == found:
        return None
    if found[0] != wanted[0]:
        return kind.miscounted.format(wanted=wanted[0], found=found[0])
    return f"has a total of {wanted[1]} micros, and its numbers cost {found[1]}"
