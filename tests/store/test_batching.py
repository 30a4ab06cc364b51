"""Batches: which orders share one, and what each caller gets."""

import asyncio

from sqlalchemy import text
from uuid_utils.compat import uuid7

from server.errors import Code
from server.store import orders
from tests.support.batcher import outcome, run
from tests.support.customer import Customer
from tests.support.orders import make_order, order_of

NOWHERE = "postgresql://127.0.0.1:9/none"


# ---------------------------------------------------------------- many orders, few transactions


def test_orders_that_wait_at_the_same_time_share_a_transaction(database, customer):
    numbers = customer.numbers(50)

    async def work(batcher):
        return await asyncio.gather(*(outcome(batcher, order_of(customer, n)) for n in numbers))

    assert run(database.url, work) == ["PLACED"] * 50
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar() == 1


def test_an_order_that_breaks_its_batch_does_not_fail_the_others(database, customer, monkeypatch):
    numbers = customer.numbers(5)
    bad = order_of(customer, numbers[0])
    decide = orders.decide

    def breaks(batch, state):
        assert bad not in batch
        return decide(batch, state)

    monkeypatch.setattr(orders, "decide", breaks)

    async def work(batcher):
        others = [order_of(customer, number) for number in numbers[1:]]
        return await asyncio.gather(*(outcome(batcher, o) for o in (bad, *others)))

    assert run(database.url, work) == [Code.INTERNAL, *["PLACED"] * 4]


# ---------------------------------------------------------------- refusals


def test_without_a_database_an_order_is_unavailable():
    assert run(NOWHERE, lambda batcher: outcome(batcher, make_order(uuid7(), "+12"))) is Code.UNAVAILABLE


def test_when_the_queue_is_full_orders_are_refused_at_once(database, customer, until_a_transaction_waits):
    numbers = customer.numbers(12)

    async def work(batcher):
        def buy(number):
            return asyncio.create_task(outcome(batcher, order_of(customer, number)))

        taken = [buy(number) for number in numbers[:10]]
        await asyncio.to_thread(until_a_transaction_waits)
        refused = buy(numbers[10])
        await asyncio.sleep(0)  # one step is all that it needs
        assert refused.done()
        assert not any(waiting.done() for waiting in taken)
        lock.close()
        return await refused, await asyncio.gather(*taken), await buy(numbers[11])

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM organization FOR UPDATE"))
    assert run(database.url, work, orders_in_progress_max=10) == (Code.UNAVAILABLE, ["PLACED"] * 10, "PLACED")
    assert customer.owned() == {*numbers[:10], numbers[11]}


# ---------------------------------------------------------------- rows that another transaction keeps locked


def test_an_order_that_waits_for_a_locked_row_neither_fails_nor_delays_others(database, customer):
    locked, *free = customer.numbers(11)

    async def work(batcher):
        def buy(number):
            return asyncio.create_task(outcome(batcher, order_of(customer, number)))

        waiting, *others = [buy(number) for number in (locked, *free)]
        assert await asyncio.gather(*others) == ["PLACED"] * 10
        assert not waiting.done()
        lock.close()
        return await waiting

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": locked})
    assert run(database.url, work) == "PLACED"


def test_a_locked_organization_delays_no_other(database, customer):
    other = Customer.open(database.engine)
    (mine,), (theirs,) = customer.numbers(1), customer.numbers(1)

    async def work(batcher):
        waiting = asyncio.create_task(outcome(batcher, order_of(customer, mine)))
        assert await outcome(batcher, order_of(other, theirs)) == "PLACED"
        assert not waiting.done()
        lock.close()
        return await waiting

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM organization WHERE id = :id FOR UPDATE"), {"id": customer.id})
    assert run(database.url, work) == "PLACED"


def test_a_row_locked_for_long_leaves_no_backend_waiting(database, customer):
    (number,) = customer.numbers(1)
    waiters = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")

    async def work(batcher):
        assert await outcome(batcher, order_of(customer, number), 1.0) is Code.UNAVAILABLE
        with database.engine.connect() as connection:
            return connection.execute(waiters).scalar()

    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
        assert run(database.url, work, lock_timeout_ms=10_000) == 0


def test_an_order_whose_transaction_runs_at_the_deadline_is_a_timeout(database, customer, until_a_transaction_waits):
    patient, begun, behind = customer.numbers(3)

    async def work(batcher):
        def buy(number, timeout_seconds):
            buying = outcome(batcher, order_of(customer, number), timeout_seconds)
            return asyncio.create_task(buying)

        batch = [buy(patient, 10), buy(begun, 0.3)]
        await asyncio.to_thread(until_a_transaction_waits)
        responses = [await buy(behind, 0.1), await batch[1]]
        lock.close()
        return [*responses, await batch[0]]

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM phone_number FOR UPDATE"))
    assert run(database.url, work, lock_timeout_ms=5000) == [Code.UNAVAILABLE, Code.TIMEOUT, "PLACED"]
    assert customer.owned() == {patient, begun}


def test_an_order_of_a_row_that_stays_locked_is_unavailable(database, customer):
    (number,) = customer.numbers(1)

    async def work(batcher):
        with database.engine.begin() as connection:
            connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
            refused = await outcome(batcher, order_of(customer, number), 0.5)
        return refused, await outcome(batcher, order_of(customer, number))

    assert run(database.url, work, lock_timeout_ms=10) == (Code.UNAVAILABLE, "PLACED")


def test_when_a_caller_leaves_its_order_is_dropped_unless_it_was_sent(database, customer, until_a_transaction_waits):
    began, dropped = customer.numbers(2)
    lock = database.engine.connect()
    lock.execute(text("SELECT FROM organization FOR UPDATE"))

    async def work(batcher):
        first = asyncio.create_task(batcher.place(order_of(customer, began), 10))
        await asyncio.to_thread(until_a_transaction_waits)
        second = asyncio.create_task(batcher.place(order_of(customer, dropped), 10))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        lock.close()
        assert await asyncio.gather(first, second, return_exceptions=True)

    run(database.url, work, lock_timeout_ms=5000)
    assert customer.owned() == {began}


def test_orders_continue_after_the_database_was_restarted(database, customer):
    first, second = customer.numbers(2)

    async def work(batcher):
        placed = await outcome(batcher, order_of(customer, first))
        with database.engine.begin() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                     " AND datname = current_database() AND backend_type = 'client backend'")
            )  # fmt: skip
        return placed, await outcome(batcher, order_of(customer, second))

    assert run(database.url, work) == ("PLACED", "PLACED")


def test_under_load_a_batch_waits_to_be_as_large_as_the_one_before(customer, database):
    async def work(batcher):
        async def buy(numbers):
            for number in numbers:
                await outcome(batcher, order_of(customer, number))

        numbers = customer.numbers(32)
        await asyncio.gather(*(buy(numbers[i::8]) for i in range(8)))

    run(database.url, work, batch_linger_ms=1000)
    with database.engine.connect() as connection:
        batches = connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar()
    assert batches <= 6  # four of eight orders, and two smaller ones at the start
