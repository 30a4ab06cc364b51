"""Waiting orders: who gets into a batch, and what callers hear when it cannot be carried out."""

import asyncio
from uuid import UUID

from sqlalchemy import text
from uuid_utils.compat import uuid7

from server.batching import Batcher, _Queue, _Waiting
from server.config import Settings
from server.errors import Code, Refusal
from server.ordering import Order
from server.store import orders

NOWHERE = "postgresql://127.0.0.1:9/none"


def order(organization_id, *numbers, api_key_id=None):
    ids = tuple(str(uuid7()) for _ in numbers)
    return Order(str(uuid7()), str(organization_id), str(api_key_id or uuid7()), "numbers:write", "", numbers, ids)


def run(url, work, **settings):
    """Do `work(batcher)` with a batcher of one lane on that database."""

    async def main():
        batcher = Batcher(Settings(lanes=1, **settings), url)
        try:
            return await work(batcher)
        finally:
            await batcher.close()

    return asyncio.run(main())


async def outcome(batcher, order, timeout_seconds=10.0):
    try:
        return "PLACED" if await batcher.place(order, timeout_seconds) else None
    except Refusal as refusal:
        return refusal.code


# ---------------------------------------------------------------- the queue


def queue(*organizations, numbers=1):
    waiting = _Queue()
    for i, organization in enumerate(organizations):
        numbers_of_it = [f"+{i}{j}" for j in range(numbers)]
        waiting.put(_Waiting(order(UUID(int=organization), *numbers_of_it), None))
    return waiting


def organizations(batch):
    return [UUID(waiting.order.organization_id).int for waiting in batch]


def test_organizations_take_turns():
    waiting = queue(1, 1, 1, 1, 1, 2, 3, 2)
    assert organizations(waiting.take(4, 500)) == [1, 2, 3, 1]
    assert organizations(waiting.take(4, 500)) == [2, 1, 1, 1]
    assert waiting.take(4, 500) == []


def test_a_batch_has_at_most_so_many_numbers_but_always_an_order():
    waiting = queue(1, 2, 3, numbers=40)
    assert organizations(waiting.take(64, 100)) == [1, 2]
    assert organizations(waiting.take(64, 1)) == [3]


def test_who_did_not_fit_comes_first_next_time():
    waiting = queue(1, 2, 3, 1, numbers=40)
    assert organizations(waiting.take(64, 100)) == [1, 2]
    assert organizations(waiting.take(64, 100)) == [3, 1]


# ---------------------------------------------------------------- many orders, few transactions


def test_what_waits_together_is_carried_out_together(database, shop):
    numbers = shop.numbers(50)

    async def work(batcher):
        return await asyncio.gather(*(outcome(batcher, order(shop.id, n, api_key_id=shop.key_id)) for n in numbers))

    assert run(database.url, work) == ["PLACED"] * 50
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar() == 1


def test_an_order_that_breaks_its_batch_does_not_fail_its_neighbours(database, shop, monkeypatch):
    numbers = shop.numbers(5)
    bad = order(shop.id, numbers[0], api_key_id=shop.key_id)
    decide = orders.decide

    def breaks(batch, state):
        assert bad not in batch
        return decide(batch, state)

    monkeypatch.setattr(orders, "decide", breaks)

    async def work(batcher):
        others = [order(shop.id, number, api_key_id=shop.key_id) for number in numbers[1:]]
        return await asyncio.gather(*(outcome(batcher, o) for o in (bad, *others)))

    assert run(database.url, work) == [Code.INTERNAL, *["PLACED"] * 4]


# ---------------------------------------------------------------- what callers hear


def test_without_a_database_an_order_is_certainly_not_carried_out():
    assert run(NOWHERE, lambda batcher: outcome(batcher, order(uuid7(), "+12"))) is Code.UNAVAILABLE


def test_beyond_the_queue_orders_are_refused_at_once():
    async def work(batcher):
        return await asyncio.gather(*(outcome(batcher, order(uuid7(), "+12"), 0.2) for _ in range(12)))

    answers = run(NOWHERE, work, queue_orders_max=10)
    assert answers == [Code.UNAVAILABLE] * 12


def test_an_order_that_has_begun_when_its_time_is_up_may_have_been_carried_out(database, shop):
    (number,) = shop.numbers(1)

    async def work(batcher):
        begun = asyncio.create_task(outcome(batcher, order(shop.id, number, api_key_id=shop.key_id), 0.1))
        await asyncio.sleep(0.05)
        behind = asyncio.create_task(outcome(batcher, order(shop.id, number, api_key_id=shop.key_id), 0.1))
        return await asyncio.gather(begun, behind)

    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
        assert run(database.url, work) == [Code.TIMEOUT, Code.UNAVAILABLE]
    assert shop.owned() == set()


def test_a_row_kept_locked_refuses_its_orders_and_then_sells_again(database, shop):
    (number,) = shop.numbers(1)

    async def work(batcher):
        with database.engine.begin() as connection:
            connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
            refused = await outcome(batcher, order(shop.id, number, api_key_id=shop.key_id))
        return refused, await outcome(batcher, order(shop.id, number, api_key_id=shop.key_id))

    assert run(database.url, work, lock_timeout_ms=10) == (Code.UNAVAILABLE, "PLACED")


def test_a_caller_that_left_drops_its_order_unless_its_batch_began(database, shop, until_somebody_waits):
    began, dropped = shop.numbers(2)
    lock = database.engine.connect()
    lock.execute(text("SELECT FROM organization FOR UPDATE"))

    async def work(batcher):
        first = asyncio.create_task(batcher.place(order(shop.id, began, api_key_id=shop.key_id), 10))
        await asyncio.to_thread(until_somebody_waits)
        second = asyncio.create_task(batcher.place(order(shop.id, dropped, api_key_id=shop.key_id), 10))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        lock.close()
        assert await asyncio.gather(first, second, return_exceptions=True)

    run(database.url, work, lock_timeout_ms=5000)
    assert shop.owned() == {began}


def test_a_server_that_was_restarted_is_connected_to_again(database, shop):
    first, second = shop.numbers(2)

    async def work(batcher):
        placed = await outcome(batcher, order(shop.id, first, api_key_id=shop.key_id))
        with database.engine.begin() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                     " AND datname = current_database() AND backend_type = 'client backend'")
            )  # fmt: skip
        lost = await outcome(batcher, order(shop.id, second, api_key_id=shop.key_id))
        return placed, lost, await outcome(batcher, order(shop.id, second, api_key_id=shop.key_id))

    assert run(database.url, work) == ("PLACED", Code.UNAVAILABLE, "PLACED")


def test_while_there_are_many_a_batch_waits_for_as_many_as_the_last_one_had(shop, database):
    async def work(batcher):
        async def buy(numbers):
            for number in numbers:
                await outcome(batcher, order(shop.id, number, api_key_id=shop.key_id))

        numbers = shop.numbers(32)
        await asyncio.gather(*(buy(numbers[i::8]) for i in range(8)))

    run(database.url, work, gather_ms=1000)
    with database.engine.connect() as connection:
        batches = connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar()
    assert batches <= 6  # four of eight, and what the first ones lacked
