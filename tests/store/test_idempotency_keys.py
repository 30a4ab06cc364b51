"""Orders with idempotency keys, at the same time and one after the other."""

import asyncio

import pytest
from sqlalchemy import text

from server.errors import Code
from server.rules.values import Idempotency
from tests.support.batcher import new_batcher, outcome, run
from tests.support.orders import order_of


def keyed(customer, key, *numbers, asked=b"the same"):
    plain = order_of(customer, *numbers)
    return plain._replace(idempotency=Idempotency(key, asked))


def test_concurrent_orders_with_the_same_key_are_carried_out_once(database, customer):
    (number,) = customer.numbers(1)

    async def work(batcher):
        return await asyncio.gather(*(batcher.place(keyed(customer, "k", number), 10) for _ in range(20)))

    responses = run(database.url, work)
    assert len({response.message for response in responses}) == 1
    assert sorted(response.is_replayed for response in responses) == [False] + [True] * 19
    assert len(customer.assignment_ids()) == 1


def test_orders_with_the_same_key_in_several_workers_are_carried_out_once(database, customer):
    """Each has its own connections, as in separate processes."""
    numbers = customer.numbers(20)

    async def main():
        batchers = [new_batcher(database.url) for _ in range(4)]
        try:
            orders = [(b, keyed(customer, f"k{i}", n)) for i, n in enumerate(numbers) for b in batchers]
            return await asyncio.gather(*(batcher.place(order, 20) for batcher, order in orders))
        finally:
            await asyncio.gather(*(batcher.close() for batcher in batchers))

    responses = asyncio.run(main())
    assert len({response.message for response in responses}) == 20
    assert [response.is_replayed for response in responses].count(False) == 20
    assert len(customer.assignment_ids()) == 20


def test_a_replay_takes_no_number_lock(database, customer):
    (number,) = customer.numbers(1)

    async def work(batcher):
        first = await batcher.place(keyed(customer, "k", number), 10)
        with database.engine.begin() as connection:
            connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
            return first, await batcher.place(keyed(customer, "k", number), 3)

    first, again = run(database.url, work, lock_timeout_ms=10_000)
    assert (first.message, first.is_replayed, again.is_replayed) == (again.message, False, True)


@pytest.mark.parametrize("deadline_seconds", [1.5, 10.0])
def test_a_key_that_another_server_is_using_is_in_progress(database, customer, deadline_seconds):
    """The other one has claimed the key, as a retry does, and has not committed."""
    (number,) = customer.numbers(1)
    claim = text("INSERT INTO idempotency_key SELECT :id, 'k', '', :id, '', clock_timestamp()")

    async def work(batcher):
        waiting = asyncio.create_task(outcome(batcher, keyed(customer, "k", number), deadline_seconds))
        await asyncio.wait({waiting}, timeout=2)
        other.close()
        return await waiting

    other = database.engine.connect()
    other.execute(claim, {"id": customer.id})
    expected = Code.IDEMPOTENCY_IN_PROGRESS if deadline_seconds < 2 else "PLACED"
    assert run(database.url, work, lock_timeout_ms=20) == expected


def test_a_second_order_with_the_same_key_waits_for_the_first_in_the_same_server(
    database, customer, until_a_transaction_waits
):
    (number,) = customer.numbers(1)

    async def work(batcher):
        first = asyncio.create_task(batcher.place(keyed(customer, "k", number), 10))
        await asyncio.to_thread(until_a_transaction_waits)
        early = await outcome(batcher, keyed(customer, "k", number), 0.1)
        second = asyncio.create_task(batcher.place(keyed(customer, "k", number), 10))
        await asyncio.sleep(0)
        lock.close()
        return early, (await first).is_replayed, (await second).is_replayed

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM phone_number FOR UPDATE"))
    assert run(database.url, work, lock_timeout_ms=5000) == (Code.IDEMPOTENCY_IN_PROGRESS, False, True)


def test_a_refusal_leaves_the_key_free_in_a_batch_and_in_a_retry(database, customer):
    (number,) = customer.numbers(1)

    async def work(batcher):
        poor = await outcome(batcher, keyed(customer, "k", number, "+999"))
        with database.engine.begin() as connection:
            connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
            slow = asyncio.create_task(outcome(batcher, keyed(customer, "k", number, "+999")))
            await asyncio.sleep(0.3)
        return poor, await slow, await outcome(batcher, keyed(customer, "k", number))

    refused = Code.INSUFFICIENT_INVENTORY
    assert run(database.url, work, lock_timeout_ms=50) == (refused, refused, "PLACED")
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM idempotency_key")).scalar() == 1
