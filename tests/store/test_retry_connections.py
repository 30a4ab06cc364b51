"""Orders on the retry connections."""

import asyncio
from collections import Counter

from sqlalchemy import text

from server import one_by_one
from server.errors import Code
from server.one_by_one import OneByOne
from tests.support.batcher import outcome, run
from tests.support.orders import order_of
from tests.support.stack import wait_until


def test_an_order_may_be_retried_more_than_a_thousand_times(database, customer, monkeypatch):
    (number,) = customer.numbers(1)
    monkeypatch.setattr(one_by_one, "PAUSE_SECONDS_MAX", 0)

    async def work(batcher):
        pending = asyncio.create_task(outcome(batcher, order_of(customer, number), 30))
        await asyncio.to_thread(wait_until, lambda: tries and tries[0].tries > 1100)
        lock.close()
        return await pending

    tries, put = [], OneByOne.put
    monkeypatch.setattr(OneByOne, "put", lambda retries, pending: (tries.append(pending), put(retries, pending)))
    lock = database.engine.connect()
    lock.execute(text("SELECT FROM phone_number FOR UPDATE"))
    assert run(database.url, work, lock_timeout_ms=1) == "PLACED"


def test_orders_of_one_locked_number_do_not_delay_other_retries(database, customer):
    """Only one of them is tried at a time."""
    locked, briefly = customer.numbers(2)
    waiters = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    counts = []

    async def watch():
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while True:
                counts.append(connection.execute(waiters).scalar())
                await asyncio.sleep(0.002)

    async def work(batcher):
        def buy(number, timeout_seconds):
            buying = outcome(batcher, order_of(customer, number), timeout_seconds)
            return asyncio.create_task(buying)

        many = [buy(locked, 60) for _ in range(600)]
        one = buy(briefly, 5)
        await asyncio.sleep(1)  # all of them wait for the retry connections
        brief.close()
        watching = asyncio.create_task(watch())
        response = await one
        watching.cancel()
        assert not any(each.done() for each in many)
        long.close()
        return response, await asyncio.gather(*many)

    long, brief = database.engine.connect(), database.engine.connect()
    for lock, number in ((long, locked), (brief, briefly)):
        lock.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": number})
    response, responses = run(database.url, work, retry_connections=3)
    assert response == "PLACED"
    assert max(counts) <= 2  # one for each of the two numbers
    assert Counter(responses) == {"PLACED": 1, Code.INSUFFICIENT_INVENTORY: 599}
