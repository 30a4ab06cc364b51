"""A database to measure on: customers with keys and credit, and numbers that are not yet sold.

Ids and numbers are made from integers, because pgbench knows only those.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple
from uuid import UUID

import psycopg

from server import keys
from server.store.engine import admin_engine
from tests.bench.parts import Tree

ORGANIZATIONS = 1000
PRICE_MICROS = 1_000_000
CREDIT_MICROS = 10**15
BLOCK_NUMBERS = 500_000  # how many numbers are added at a time
FIRST_NUMBER = 2_000_000_000
# 3 to the 18th has no common factor with any round size. So its multiples reach each number of a block once.
SPREAD = 387_420_489

# SQL that makes a number and the ids of a customer from integers.
NUMBER = f"'+1' || ({FIRST_NUMBER} + ({{index}})::bigint)::text"
ORGANIZATION_ID = "('00000000-0000-7000-8000-' || lpad(to_hex(({no})::bigint), 12, '0'))::uuid"
KEY_ID = "('00000000-0000-7000-9000-' || lpad(to_hex(({no})::bigint), 12, '0'))::uuid"


@dataclass(frozen=True)
class BenchCustomer:
    """An organization and its key."""

    no: int
    id: UUID
    key_id: UUID
    key: str

    @classmethod
    def numbered(cls, no: int) -> "BenchCustomer":
        id_ = UUID(f"00000000-0000-7000-8000-{no:012x}")
        return cls(no, id_, UUID(f"00000000-0000-7000-9000-{no:012x}"), keys.new_key(id_))

    def worker_index(self, workers: int) -> int:
        """The worker that gets its orders."""
        # By the tag in the key, as at the edge. The edge has another hash function.
        tag = self.key[len(keys.PREFIX) :][: keys.TAG_CHARS]
        return zlib.crc32(tag.encode()) % workers


class Block(NamedTuple):
    """Numbers of the inventory that were added together."""

    first: int
    """Index of the first number."""
    size: int
    taken: int = 0

    def index_at(self, position: int) -> int:
        """The index of the number that is taken as the `position`-th."""
        # Numbers that are ordered one after the other must not be neighbours in the table.
        return self.first + position * SPREAD % self.size


class BenchDatabase:
    """Customers, the numbers that they can order, and counts of what was ordered."""

    def __init__(self, url: str, tree: Tree, block_numbers: int = BLOCK_NUMBERS) -> None:
        self.url = url
        self.engine = admin_engine(url)
        self._tree = tree
        tree.migrate(url)
        self.customers = [BenchCustomer.numbered(no) for no in range(1, ORGANIZATIONS + 1)]
        self._block_numbers = block_numbers
        self._add_customers()
        self._add_block(0)

    def require(self, count: int) -> None:
        """Make sure that `take(count)` needs no new block."""
        if self.block.size - self.block.taken < count:
            self._add_block(self.block.first + self.block.size)

    def take(self, count: int) -> list[str]:
        """Return numbers that no order has wanted yet."""
        self.require(count)
        first = self.block.taken
        self.block = self.block._replace(taken=first + count)
        return [f"+1{FIRST_NUMBER + self.block.index_at(first + i)}" for i in range(count)]

    def give_back(self, count: int) -> None:
        """Make the last `count` taken numbers available again: they were not ordered."""
        self.block = self.block._replace(taken=self.block.taken - count)

    def orders(self, count: int, numbers_each: int = 1) -> list[list[str]]:
        """Take the numbers of `count` orders."""
        numbers = iter(self.take(count * numbers_each))
        return [list(islice(numbers, numbers_each)) for _ in range(count)]

    def orders_made(self) -> int:
        """How many orders have been carried out so far."""
        # Each organization has one ledger entry for its credit, and one for each order.
        return int(self._rows("SELECT sum(entry_no) - count(*) FROM organization")[0][0])

    def order_pages(self) -> int:
        """How many pages the table `orders` has. Later orders are on later pages."""
        return int(self._rows("SELECT pg_relation_size('orders') / current_setting('block_size')::int")[0][0])

    def orders_per_batch(self, after_pages: int) -> float:
        """How many orders shared a transaction on average, of those on later pages than `after_pages`."""
        # All orders of a transaction have the same timestamp.
        count = "SELECT count(*), count(DISTINCT created_at) FROM orders WHERE ctid >= %s::tid"
        orders, timestamps = self._rows(count, [f"({after_pages},0)"])[0]
        return orders / max(1, timestamps)

    def count_assigned(self, numbers: Sequence[str]) -> int:
        """How many of the numbers are assigned."""
        count = "SELECT count(*) FROM phone_number WHERE number = ANY(%s) AND assignment_id IS NOT NULL"
        return int(self._rows(count, [list(numbers)])[0][0])

    def checkpoint(self) -> None:
        """Write all changes to disk now, so that PostgreSQL does not write them during a measurement."""
        self._rows("CHECKPOINT")

    def violations(self) -> list[str]:
        """The violations that `ordernumbers check` finds."""
        return self._tree.violations(self.url)

    def _add_customers(self) -> None:
        customers = [(each.id, each.key_id, keys.digest(each.key)) for each in self.customers]
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            for sql in (INSERT_ORGANIZATION, INSERT_CREDIT):
                cursor.executemany(sql, [{"id": id_, "credit": CREDIT_MICROS} for id_, _, _ in customers])
            rows = [{"id": id_, "key_id": key, "digest": digest} for id_, key, digest in customers]
            cursor.executemany(INSERT_KEY, rows)

    def _add_block(self, first: int) -> None:
        """Add a block of numbers."""
        # Before the insert, because after a checkpoint the first change of each page is expensive.
        self.checkpoint()
        self.block = Block(first, self._block_numbers)
        self._rows(INSERT_NUMBERS, [first, first + self._block_numbers - 1])
        # Otherwise PostgreSQL would do it by itself during a measurement.
        self._rows("VACUUM (ANALYZE) phone_number")

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[int, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


INSERT_ORGANIZATION = """
    INSERT INTO organization (id, name, balance_micros, entry_no, created_at)
    VALUES (%(id)s, 'A customer', %(credit)s, 1, now())
"""
INSERT_CREDIT = """
    INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, created_at)
    VALUES (%(id)s, 1, 'credit', %(credit)s, %(credit)s, now())
"""
INSERT_KEY = """
    INSERT INTO api_key (id, organization_id, digest, scopes, created_at)
    VALUES (%(key_id)s, %(id)s, %(digest)s, '{numbers:read,numbers:write}', now())
"""
INSERT_NUMBERS = f"""
    INSERT INTO phone_number (number, number_type, sms_enabled, mms_enabled, price_micros)
    SELECT {NUMBER.format(index="i")}, 'local', true, false, {PRICE_MICROS}
    FROM generate_series(%s::bigint, %s::bigint) AS i
"""
