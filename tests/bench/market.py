"""A database to measure on: organizations with keys and credit, and numbers that are not yet sold.

Ids are made so that pgbench, which knows only integers, can write them down too.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple
from uuid import UUID

import psycopg

from server import keys
from server.store import migrations
from server.store.check import violations
from server.store.engine import admin_engine

ORGANIZATIONS = 1000
PRICE_MICROS = 1_000_000
CREDIT_MICROS = 10**15
BLOCK_NUMBERS = 500_000
FIRST_NUMBER = 2_000_000_000
SPREAD = 387_420_489  # 3 to the 18th: prime to every round size, so it leads once to each number of a block

# What the numbers of an order, its organization's id and its key's id are, of the integers that pgbench has.
NUMBER = f"'+1' || ({FIRST_NUMBER} + ({{index}})::bigint)::text"
ORGANIZATION_ID = "('00000000-0000-7000-8000-' || lpad(to_hex(({no})::bigint), 12, '0'))::uuid"
KEY_ID = "('00000000-0000-7000-9000-' || lpad(to_hex(({no})::bigint), 12, '0'))::uuid"


@dataclass(frozen=True)
class Buyer:
    """An organization and its key."""

    no: int
    id: UUID
    key_id: UUID
    key: str

    @classmethod
    def number(cls, no: int) -> "Buyer":
        id_ = UUID(f"00000000-0000-7000-8000-{no:012x}")
        return cls(no, id_, UUID(f"00000000-0000-7000-9000-{no:012x}"), keys.new_key(id_))

    def lane(self, workers: int) -> int:
        """The worker that its orders go to: by the tag in its key, as at the edge (whose hash is another)."""
        tag = self.key[len(keys.PREFIX) :][: keys.TAG_CHARS]
        return zlib.crc32(tag.encode()) % workers


class Block(NamedTuple):
    """Numbers of the inventory: the index of the first, how many, and how many of them are taken."""

    first: int
    size: int
    taken: int = 0

    def index_at(self, position: int) -> int:
        """Neighbours in time are none in the tables: `position` leads all over the block, to each number once."""
        return self.first + position * SPREAD % self.size


class Market:
    """What is for sale, and who buys, in one database."""

    def __init__(self, url: str, block_numbers: int = BLOCK_NUMBERS) -> None:
        self.url = url
        self.engine = admin_engine(url)
        migrations.upgrade(self.engine)
        self.buyers = [Buyer.number(no) for no in range(1, ORGANIZATIONS + 1)]
        self._block_numbers = block_numbers
        self._open_accounts()
        self._refill(0)

    def require(self, count: int) -> None:
        """See to it that so many numbers can be taken in one go."""
        if self.block.size - self.block.taken < count:
            self._refill(self.block.first + self.block.size)

    def take(self, count: int) -> list[str]:
        """Numbers that nobody has ordered yet."""
        self.require(count)
        first = self.block.taken
        self.block = self.block._replace(taken=first + count)
        return [f"+1{FIRST_NUMBER + self.block.index_at(first + i)}" for i in range(count)]

    def give_back(self, count: int) -> None:
        """The last so many of what was taken were not ordered."""
        self.block = self.block._replace(taken=self.block.taken - count)

    def orders(self, count: int, numbers_each: int = 1) -> list[list[str]]:
        """The numbers of so many orders."""
        numbers = iter(self.take(count * numbers_each))
        return [list(islice(numbers, numbers_each)) for _ in range(count)]

    def orders_made(self) -> int:
        """Orders carried out so far, as the organizations' accounts say."""
        return int(self._rows("SELECT sum(entry_no) - count(*) FROM organization")[0][0])

    def order_pages(self) -> int:
        """How many pages the table of orders has; what comes later is on later ones."""
        return int(self._rows("SELECT pg_relation_size('orders') / current_setting('block_size')::int")[0][0])

    def orders_per_batch(self, after_pages: int) -> float:
        """Of the orders on later pages than these: how many shared a transaction. All of one have one instant."""
        count = "SELECT count(*), count(DISTINCT created_at) FROM orders WHERE ctid >= %s::tid"
        orders, instants = self._rows(count, [f"({after_pages},0)"])[0]
        return orders / max(1, instants)

    def owners(self, numbers: Sequence[str]) -> int:
        """How many of the numbers are somebody's."""
        count = "SELECT count(*) FROM phone_number WHERE number = ANY(%s) AND assignment_id IS NOT NULL"
        return int(self._rows(count, [list(numbers)])[0][0])

    def checkpoint(self) -> None:
        """Write everything down now, so that it is not written while somebody measures."""
        self._rows("CHECKPOINT")

    def violations(self) -> list[str]:
        """As `ordernumbers check` says."""
        return violations(self.engine)

    def _open_accounts(self) -> None:
        buyers = [(buyer.id, buyer.key_id, keys.digest(buyer.key)) for buyer in self.buyers]
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            for sql in (ORGANIZATION, CREDIT):
                cursor.executemany(sql, [{"id": id_, "credit": CREDIT_MICROS} for id_, _, _ in buyers])
            cursor.executemany(KEY, [{"id": id_, "key_id": key, "digest": digest} for id_, key, digest in buyers])

    def _refill(self, first: int) -> None:
        """The next block. The checkpoint comes first: it would make the first change of every page after it dear."""
        self.checkpoint()
        self.block = Block(first, self._block_numbers)
        self._rows(INVENTORY, [first, first + self._block_numbers - 1])
        self._rows("ANALYZE phone_number")

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[int, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


ORGANIZATION = """
    INSERT INTO organization (id, name, balance_micros, entry_no, created_at)
    VALUES (%(id)s, 'A buyer', %(credit)s, 1, now())
"""
CREDIT = """
    INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, created_at)
    VALUES (%(id)s, 1, 'credit', %(credit)s, %(credit)s, now())
"""
KEY = """
    INSERT INTO api_key (id, organization_id, digest, scopes, created_at)
    VALUES (%(key_id)s, %(id)s, %(digest)s, '{numbers:read,numbers:write}', now())
"""
INVENTORY = f"""
    INSERT INTO phone_number (number, number_type, sms_enabled, mms_enabled, price_micros)
    SELECT {NUMBER.format(index="i")}, 'local', true, false, {PRICE_MICROS}
    FROM generate_series(%s, %s) AS i
"""
