"""Batches: which orders share one, and what each caller gets."""

import asyncio
import os
import signal
from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import text
from uuid_utils.compat import uuid7

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersResponse
from server import batching
from server.batching import Batcher
from server.config import Settings
from server.errors import Code, Refusal
from server.pending import PendingOrder, Queue
from server.rules.values import Idempotency, Placed
from server.store import orders
from server.store.orders import OutcomeUnknown
from tests.support.customer import Customer
from tests.support.orders import make_order, order_of
from tests.support.stack import wait_until

NOWHERE = "postgresql://127.0.0.1:9/none"


def run(url, work, **settings):
    """Do `work(batcher)` with a batcher with one order connection on that database."""

    async def main():
        batcher = Batcher(Settings(order_connections=1, **settings), url)
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
    waiting = Queue()
    for i, organization in enumerate(organizations):
        numbers_of_it = [f"+{i}{j}" for j in range(numbers)]
        waiting.put(PendingOrder(make_order(UUID(int=organization), *numbers_of_it), 0.0, None, None))
    return waiting


def organizations(batch):
    return [UUID(waiting.order.organization_id).int for waiting in batch]


def test_organizations_take_turns():
    waiting = queue(1, 1, 1, 1, 1, 2, 3, 2)
    assert organizations(waiting.take(4, 500)) == [1, 2, 3, 1]
    assert organizations(waiting.take(4, 500)) == [2, 1, 1, 1]
    assert waiting.take(4, 500) == []


def test_a_batch_has_at_most_numbers_max_but_always_one_order():
    waiting = queue(1, 2, 3, numbers=40)
    assert organizations(waiting.take(64, 100)) == [1, 2]
    assert organizations(waiting.take(64, 1)) == [3]


def test_an_order_that_did_not_fit_is_the_first_of_the_next_batch():
    waiting = queue(1, 2, 3, 1, numbers=40)
    assert organizations(waiting.take(64, 100)) == [1, 2]
    assert organizations(waiting.take(64, 100)) == [3, 1]


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
    assert run(database.url, work, queue_orders_max=10) == (Code.UNAVAILABLE, ["PLACED"] * 10, "PLACED")
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


# ---------------------------------------------------------------- idempotency keys


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
        batchers = [Batcher(Settings(order_connections=1), database.url) for _ in range(4)]
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


# ---------------------------------------------------------------- unknown outcomes


@pytest.fixture
def cut_at_commit(monkeypatch):
    """Make the next transactions lose their connection after the write was sent. `then` commits it, or does not."""

    def arm(times, then):
        finish, left = orders._finish, [times]

        async def cut(connection, decisions, *args):
            placed = [decision for decision in decisions if isinstance(decision, Placed)]
            if not left[0] or not placed:
                return await finish(connection, decisions, *args)
            left[0] -= 1
            await then(connection, finish(connection, decisions, *args))
            connection.cut()
            raise OutcomeUnknown(placed)

        monkeypatch.setattr(orders, "_finish", cut)

    return arm


async def committed(connection, finish):
    await finish


async def lost(connection, finish):
    finish.close()


@pytest.mark.parametrize("then", [committed, lost])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("is_keyed", [False, True])
def test_an_unknown_outcome_is_looked_up_and_returned(database, customer, cut_at_commit, then, times, is_keyed):
    numbers = customer.numbers(8)
    cut_at_commit(times, then)

    async def work(batcher):
        plain = (order_of(customer, number) for number in numbers)
        asked = [o._replace(idempotency=Idempotency(o.id, b"") if is_keyed else None) for o in plain]
        return await asyncio.gather(*(batcher.place(o, 10) for o in asked))

    responses = run(database.url, work)
    assert assigned(*responses) == customer.assignment_ids()
    assert len(assigned(*responses)) == 8
    assert not any(response.is_replayed for response in responses)


def assigned(*responses):
    return {UUID(row.id) for response in responses for row in OrderNumbersResponse.FromString(response.message).data}


@pytest.mark.parametrize("deadline_seconds", [1.0, 10.0])
def test_a_commit_that_is_still_running_is_not_taken_for_a_rollback(
    database, customer, cut_at_commit, deadline_seconds
):
    """Its backend is frozen. The order is not visible when we look, and is carried out later."""
    (number,) = customer.numbers(1)
    frozen = []

    async def freeze(connection, finish):
        frozen.append(connection.backend_pid)
        os.kill(frozen[0], signal.SIGSTOP)
        sending = asyncio.create_task(finish)
        await asyncio.wait({sending}, timeout=0.1)
        sending.cancel()
        await asyncio.wait({sending})

    cut_at_commit(1, freeze)

    async def work(batcher):
        waiting = asyncio.create_task(
            batcher.place(order_of(customer, number), deadline_seconds),
        )
        await asyncio.wait({waiting}, timeout=1.5)
        os.kill(frozen[0], signal.SIGCONT)
        return await asyncio.gather(waiting, return_exceptions=True)

    (response,) = run(database.url, work, lock_timeout_ms=20)
    wait_until(customer.owned)
    if deadline_seconds < 1.5:
        assert response.code is Code.TIMEOUT
    else:
        assert assigned(response) == customer.assignment_ids()


# ---------------------------------------------------------------- the retry connections


def test_an_order_may_be_retried_more_than_a_thousand_times(database, customer, monkeypatch):
    (number,) = customer.numbers(1)
    monkeypatch.setattr(batching, "RETRY_PAUSE_SECONDS_MAX", 0)

    async def work(batcher):
        pending = asyncio.create_task(outcome(batcher, order_of(customer, number), 30))
        await asyncio.to_thread(wait_until, lambda: tries and tries[0].tries > 1100)
        lock.close()
        return await pending

    tries, put = [], batching._Retries.put
    monkeypatch.setattr(
        batching._Retries, "put", lambda retries, pending: (tries.append(pending), put(retries, pending))
    )
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


def test_organizations_take_turns_on_the_retry_connections():
    waiting = queue(1, 1, 1, 2, 3)
    taken = [waiting.take_without({"+10"}) for _ in range(4)]
    assert [UUID(pending.order.organization_id).int for pending in taken] == [1, 2, 3, 1]
    assert [pending.order.numbers for pending in taken] == [("+00",), ("+30",), ("+40",), ("+20",)]
    assert waiting.take_without({"+10"}) is None
    assert waiting.length == 1
