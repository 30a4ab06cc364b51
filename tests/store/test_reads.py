"""Reads: they wait for nothing that writes wait for, and are refused only by their own limits."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, text, update
from uuid_utils.compat import uuid7

from ordernumbers.v1.inventory_pb2 import SearchNumbersResponse
from server.config import Settings
from server.errors import Code, Refusal
from server.reading import Reads, worker_of
from server.rules.values import Criteria
from server.store.queries import Caller, Page
from server.store.tables import phone_number
from tests.support.batcher import new_batcher
from tests.support.batcher import outcome as outcome_of_order
from tests.support.orders import order_of
from tests.support.proxy import Proxy

PAGE = Page(20, "", "", "", "")
NOWHERE = "postgresql://127.0.0.1:9/none"


@pytest.fixture
def caller(customer):
    return Caller(str(customer.id), str(customer.key_id), "numbers:read")


def run(url, work, **settings):
    """Do `work(reads)` with the reads of a worker on that database."""

    async def main():
        reads = Reads(Settings(**settings), url)
        try:
            return await work(reads)
        finally:
            await reads.close()

    return asyncio.run(main())


async def code(reading):
    try:
        return "READ" if await reading else None
    except Refusal as refusal:
        return refusal.code


def every_read(reads, caller, customer, seconds=5.0):
    """One read of each kind."""
    id_ = str(uuid7())
    order = order_of(customer, "+14155550100")
    return [
        code(reads.search(caller, Criteria(), 10, seconds)),
        code(reads.list_numbers(caller, PAGE, seconds)),
        code(reads.number(caller, id_, seconds)),
        code(reads.hold(caller, id_, seconds)),
        code(reads.order(caller, id_, seconds)),
        code(reads.order_under_key(caller, "k", seconds)),
        code(reads.bulk_order(caller, id_, seconds)),
        code(reads.preview(order, seconds)),
    ]


FOUND_NOTHING = ["READ", "READ", *[Code.NOT_FOUND] * 5, Code.INSUFFICIENT_INVENTORY]


def test_without_a_database_every_read_is_unavailable(customer, caller):
    async def work(reads):
        return await asyncio.gather(*every_read(reads, caller, customer))

    assert run(NOWHERE, work) == [Code.UNAVAILABLE] * 8


def test_no_read_waits_for_a_locked_row(database, customer, caller):
    async def work(reads):
        return await asyncio.gather(*every_read(reads, caller, customer))

    customer.numbers(1)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number, organization, api_key FOR UPDATE"))
        assert run(database.url, work) == FOUND_NOTHING


def test_a_full_queue_of_orders_refuses_no_read_and_full_reads_refuse_no_order(
    database, customer, caller, until_a_transaction_waits
):
    first, second = customer.numbers(2)

    async def work(reads):
        batcher = new_batcher(database.url, orders_in_progress_max=1)
        waiting = asyncio.create_task(outcome_of_order(batcher, order_of(customer, first)))
        await asyncio.to_thread(until_a_transaction_waits)
        assert batcher.is_full
        found = [await each for each in every_read(reads, caller, customer)]
        lock.close()
        assert await waiting == "PLACED"
        readers = [await reads._free.get() for _ in reads._readers]  # as if each were reading
        read = asyncio.create_task(code(reads.list_numbers(caller, PAGE, 5)))
        await asyncio.sleep(0)
        assert reads.is_full
        placed = await outcome_of_order(batcher, order_of(customer, second))
        refused = await code(reads.list_numbers(caller, PAGE, 5))
        for reader in readers:
            reads._free.put_nowait(reader)
        await batcher.close()
        return found, placed, refused, await read

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM organization FOR UPDATE"))
    expected = (FOUND_NOTHING, "PLACED", Code.UNAVAILABLE, "READ")
    assert run(database.url, work, reads_in_progress_max=1) == expected


def test_a_read_without_a_result_in_time_is_unavailable_and_the_next_uses_another_connection(
    database, customer, caller
):
    async def work(reads):
        before = await code(reads.list_numbers(caller, PAGE, 5))
        proxy.swallow(True)
        meanwhile = await code(reads.list_numbers(caller, PAGE, 0.3))
        proxy.swallow(False)
        return before, meanwhile, await code(reads.list_numbers(caller, PAGE, 5))

    with Proxy(database.url) as proxy:
        assert run(proxy.url, work) == ("READ", Code.UNAVAILABLE, "READ")


def test_a_connection_that_was_lost_while_idle_fails_no_read(database, customer, caller):
    async def work(reads):
        before = await code(reads.list_numbers(caller, PAGE, 5))
        with database.engine.begin() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                     " AND datname = current_database() AND backend_type = 'client backend'")
            )  # fmt: skip
        return before, await code(reads.list_numbers(caller, PAGE, 5))

    assert run(database.url, work) == ("READ", "READ")


def test_a_caller_that_leaves_frees_its_connection(database, customer, caller):
    async def work(reads):
        proxy.swallow(True)
        leaving = [asyncio.create_task(code(reads.list_numbers(caller, PAGE, 20))) for _ in range(4)]
        while not reads.is_full:
            await asyncio.sleep(0)
        for each in leaving:
            each.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        proxy.swallow(False)
        assert not reads.is_full
        return await asyncio.gather(*(code(reads.list_numbers(caller, PAGE, 5)) for _ in range(4)))

    with Proxy(database.url) as proxy:
        assert run(proxy.url, work, reads_in_progress_max=4) == ["READ"] * 4


def test_the_workers_of_a_machine_show_different_numbers(database, customer, caller):
    """Otherwise searches that run at the same time in two workers could show the same."""
    numbers = customer.numbers(100)
    shares = [[each for each in numbers if worker_of(each, 2) == worker][:10] for worker in range(2)]
    with database.engine.begin() as connection:
        others = phone_number.c.number.not_in(shares[0] + shares[1])
        connection.execute(update(phone_number).where(others).values(free_at=func.now() + timedelta(days=1)))

    async def work(first):
        second = Reads(Settings(workers=2), database.url, worker=1)
        try:
            found = await asyncio.gather(*(reads.search(caller, Criteria(), 10, 5) for reads in (first, second)))
        finally:
            await second.close()
        return [sorted(row.number for row in SearchNumbersResponse.FromString(each.message).data) for each in found]

    for _ in range(5):
        assert run(database.url, work, workers=2) == shares


def test_a_read_runs_again_after_a_conflict_until_its_time_is_over(database, customer, caller, fail_clock):
    """Only SERIALIZABLE lets a read fail so."""

    def look(seconds):
        return run(database.url, lambda reads: code(reads.list_numbers(caller, PAGE, seconds)))

    fail_clock(3)
    assert look(10) == "READ"
    with database.engine.begin() as connection:
        connection.execute(text("ALTER SEQUENCE failing.failures MINVALUE -1000000 RESTART -1000000"))
    assert look(0.5) is Code.UNAVAILABLE
