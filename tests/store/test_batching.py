"""Waiting orders: who gets into a batch, and what callers hear when it cannot be carried out."""

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
from server.messages import answer_of
from server.pending import PendingOrder, Queue
from server.rules.values import Idempotency, Order, Placed
from server.store import orders
from server.store.orders import OutcomeUnknown
from tests.support.customer import Customer
from tests.support.stack import wait_until

NOWHERE = "postgresql://127.0.0.1:9/none"


def order(organization_id, *numbers, api_key_id=None):
    ids = tuple(str(uuid7()) for _ in numbers)
    return Order(str(uuid7()), str(organization_id), str(api_key_id or uuid7()), "numbers:write", "", numbers, ids)


def run(url, work, **settings):
    """Do `work(batcher)` with a batcher of one lane on that database."""

    async def main():
        batcher = Batcher(Settings(order_connections=1, **settings), url, answer_of)
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
        waiting.put(PendingOrder(order(UUID(int=organization), *numbers_of_it), 0.0, None, None))
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


def test_what_waits_together_is_carried_out_together(database, customer):
    numbers = customer.numbers(50)

    async def work(batcher):
        return await asyncio.gather(
            *(outcome(batcher, order(customer.id, n, api_key_id=customer.key_id)) for n in numbers)
        )

    assert run(database.url, work) == ["PLACED"] * 50
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar() == 1


def test_an_order_that_breaks_its_batch_does_not_fail_its_neighbours(database, customer, monkeypatch):
    numbers = customer.numbers(5)
    bad = order(customer.id, numbers[0], api_key_id=customer.key_id)
    decide = orders.decide

    def breaks(batch, state):
        assert bad not in batch
        return decide(batch, state)

    monkeypatch.setattr(orders, "decide", breaks)

    async def work(batcher):
        others = [order(customer.id, number, api_key_id=customer.key_id) for number in numbers[1:]]
        return await asyncio.gather(*(outcome(batcher, o) for o in (bad, *others)))

    assert run(database.url, work) == [Code.INTERNAL, *["PLACED"] * 4]


# ---------------------------------------------------------------- what callers hear


def test_without_a_database_an_order_is_certainly_not_carried_out():
    assert run(NOWHERE, lambda batcher: outcome(batcher, order(uuid7(), "+12"))) is Code.UNAVAILABLE


def test_beyond_the_queue_orders_are_refused_at_once(database, customer, until_somebody_waits):
    numbers = customer.numbers(12)

    async def work(batcher):
        def buy(number):
            return asyncio.create_task(outcome(batcher, order(customer.id, number, api_key_id=customer.key_id)))

        taken = [buy(number) for number in numbers[:10]]
        await asyncio.to_thread(until_somebody_waits)
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


# ---------------------------------------------------------------- rows that others keep locked


def test_an_order_that_waits_for_a_locked_row_neither_fails_nor_delays_its_neighbours(database, customer):
    locked, *free = customer.numbers(11)

    async def work(batcher):
        def buy(number):
            return asyncio.create_task(outcome(batcher, order(customer.id, number, api_key_id=customer.key_id)))

        waiting, *others = [buy(number) for number in (locked, *free)]
        assert await asyncio.gather(*others) == ["PLACED"] * 10
        assert not waiting.done()
        lock.close()
        return await waiting

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": locked})
    assert run(database.url, work) == "PLACED"


def test_a_locked_organization_holds_up_no_other(database, customer):
    other = Customer.open(database.engine)
    (mine,), (theirs,) = customer.numbers(1), customer.numbers(1)

    async def work(batcher):
        waiting = asyncio.create_task(outcome(batcher, order(customer.id, mine, api_key_id=customer.key_id)))
        assert await outcome(batcher, order(other.id, theirs, api_key_id=other.key_id)) == "PLACED"
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
        assert await outcome(batcher, order(customer.id, number, api_key_id=customer.key_id), 1.0) is Code.UNAVAILABLE
        with database.engine.connect() as connection:
            return connection.execute(waiters).scalar()

    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
        assert run(database.url, work, lock_timeout_ms=10_000) == 0


# ---------------------------------------------------------------- idempotency keys


def keyed(customer, key, *numbers, asked=b"the same"):
    plain = order(customer.id, *numbers, api_key_id=customer.key_id)
    return plain._replace(idempotency=Idempotency(key, asked))


def test_equal_orders_at_once_are_one(database, customer):
    (number,) = customer.numbers(1)

    async def work(batcher):
        return await asyncio.gather(*(batcher.place(keyed(customer, "k", number), 10) for _ in range(20)))

    answers = run(database.url, work)
    assert len({answer.message for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 19
    assert len(customer.assignment_ids()) == 1


def test_equal_orders_of_several_workers_are_one(database, customer):
    """Each with connections of its own, as in processes of their own."""
    numbers = customer.numbers(20)

    async def main():
        batchers = [Batcher(Settings(order_connections=1), database.url, answer_of) for _ in range(4)]
        try:
            orders = [(b, keyed(customer, f"k{i}", n)) for i, n in enumerate(numbers) for b in batchers]
            return await asyncio.gather(*(batcher.place(order, 20) for batcher, order in orders))
        finally:
            await asyncio.gather(*(batcher.close() for batcher in batchers))

    answers = asyncio.run(main())
    assert len({answer.message for answer in answers}) == 20
    assert [answer.replayed for answer in answers].count(False) == 20
    assert len(customer.assignment_ids()) == 20


def test_a_replay_takes_no_number_lock(database, customer):
    (number,) = customer.numbers(1)

    async def work(batcher):
        first = await batcher.place(keyed(customer, "k", number), 10)
        with database.engine.begin() as connection:
            connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
            return first, await batcher.place(keyed(customer, "k", number), 3)

    first, again = run(database.url, work, lock_timeout_ms=10_000)
    assert (first.message, first.replayed, again.replayed) == (again.message, False, True)


@pytest.mark.parametrize("deadline_seconds", [1.5, 10.0])
def test_while_another_server_is_at_work_under_a_key_it_is_in_progress(database, customer, deadline_seconds):
    """The other one claimed the key, as the slow lane does, and is not done."""
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


def test_a_second_order_under_a_key_waits_for_the_first_in_its_own_server_too(database, customer, until_somebody_waits):
    (number,) = customer.numbers(1)

    async def work(batcher):
        first = asyncio.create_task(batcher.place(keyed(customer, "k", number), 10))
        await asyncio.to_thread(until_somebody_waits)
        hasty = await outcome(batcher, keyed(customer, "k", number), 0.1)
        second = asyncio.create_task(batcher.place(keyed(customer, "k", number), 10))
        await asyncio.sleep(0)
        lock.close()
        return hasty, (await first).replayed, (await second).replayed

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM phone_number FOR UPDATE"))
    assert run(database.url, work, lock_timeout_ms=5000) == (Code.IDEMPOTENCY_IN_PROGRESS, False, True)


def test_a_key_is_free_again_after_a_refusal_wherever_that_was_decided(database, customer):
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


def test_an_order_that_has_begun_when_its_time_is_up_may_have_been_carried_out(
    database, customer, until_somebody_waits
):
    patient, begun, behind = customer.numbers(3)

    async def work(batcher):
        def buy(number, timeout_seconds):
            buying = outcome(batcher, order(customer.id, number, api_key_id=customer.key_id), timeout_seconds)
            return asyncio.create_task(buying)

        batch = [buy(patient, 10), buy(begun, 0.3)]
        await asyncio.to_thread(until_somebody_waits)
        answers = [await buy(behind, 0.1), await batch[1]]
        lock.close()
        return [*answers, await batch[0]]

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM phone_number FOR UPDATE"))
    assert run(database.url, work, lock_timeout_ms=5000) == [Code.UNAVAILABLE, Code.TIMEOUT, "PLACED"]
    assert customer.owned() == {patient, begun}


def test_an_order_of_a_row_kept_locked_is_certainly_not_carried_out(database, customer):
    (number,) = customer.numbers(1)

    async def work(batcher):
        with database.engine.begin() as connection:
            connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
            refused = await outcome(batcher, order(customer.id, number, api_key_id=customer.key_id), 0.5)
        return refused, await outcome(batcher, order(customer.id, number, api_key_id=customer.key_id))

    assert run(database.url, work, lock_timeout_ms=10) == (Code.UNAVAILABLE, "PLACED")


def test_a_caller_that_left_drops_its_order_unless_its_batch_began(database, customer, until_somebody_waits):
    began, dropped = customer.numbers(2)
    lock = database.engine.connect()
    lock.execute(text("SELECT FROM organization FOR UPDATE"))

    async def work(batcher):
        first = asyncio.create_task(batcher.place(order(customer.id, began, api_key_id=customer.key_id), 10))
        await asyncio.to_thread(until_somebody_waits)
        second = asyncio.create_task(batcher.place(order(customer.id, dropped, api_key_id=customer.key_id), 10))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        lock.close()
        assert await asyncio.gather(first, second, return_exceptions=True)

    run(database.url, work, lock_timeout_ms=5000)
    assert customer.owned() == {began}


def test_a_server_that_was_restarted_is_connected_to_again(database, customer):
    first, second = customer.numbers(2)

    async def work(batcher):
        placed = await outcome(batcher, order(customer.id, first, api_key_id=customer.key_id))
        with database.engine.begin() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                     " AND datname = current_database() AND backend_type = 'client backend'")
            )  # fmt: skip
        return placed, await outcome(batcher, order(customer.id, second, api_key_id=customer.key_id))

    assert run(database.url, work) == ("PLACED", "PLACED")


def test_while_there_are_many_a_batch_waits_for_as_many_as_the_last_one_had(customer, database):
    async def work(batcher):
        async def buy(numbers):
            for number in numbers:
                await outcome(batcher, order(customer.id, number, api_key_id=customer.key_id))

        numbers = customer.numbers(32)
        await asyncio.gather(*(buy(numbers[i::8]) for i in range(8)))

    run(database.url, work, batch_linger_ms=1000)
    with database.engine.connect() as connection:
        batches = connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar()
    assert batches <= 6  # four of eight, and what the first ones lacked


# ---------------------------------------------------------------- outcomes that nobody heard


@pytest.fixture
def cut_at_commit(monkeypatch):
    """Makes the next transactions lose their connection when the write was sent: `then` says what becomes of it."""

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


@pytest.mark.parametrize("became", [committed, lost])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("is_keyed", [False, True])
def test_an_unknown_outcome_is_settled_and_truly_told(database, customer, cut_at_commit, became, times, is_keyed):
    numbers = customer.numbers(8)
    cut_at_commit(times, became)

    async def work(batcher):
        plain = (order(customer.id, number, api_key_id=customer.key_id) for number in numbers)
        asked = [o._replace(idempotency=Idempotency(o.id, b"") if is_keyed else None) for o in plain]
        return await asyncio.gather(*(batcher.place(o, 10) for o in asked))

    answers = run(database.url, work)
    assert assigned(*answers) == customer.assignment_ids()
    assert len(assigned(*answers)) == 8
    assert not any(answer.replayed for answer in answers)


def assigned(*answers):
    return {UUID(row.id) for answer in answers for row in OrderNumbersResponse.FromString(answer.message).data}


@pytest.mark.parametrize("deadline_seconds", [1.0, 10.0])
def test_a_backend_that_is_still_flushing_fools_nobody(database, customer, cut_at_commit, deadline_seconds):
    """It has the COMMIT and stands still: its order is not to be seen when we look, and still will be carried out."""
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
            batcher.place(order(customer.id, number, api_key_id=customer.key_id), deadline_seconds),
        )
        await asyncio.wait({waiting}, timeout=1.5)
        os.kill(frozen[0], signal.SIGCONT)
        return await asyncio.gather(waiting, return_exceptions=True)

    (answer,) = run(database.url, work, lock_timeout_ms=20)
    wait_until(customer.owned)
    if deadline_seconds < 1.5:
        assert answer.code is Code.TIMEOUT
    else:
        assert assigned(answer) == customer.assignment_ids()


# ---------------------------------------------------------------- the slow lane


def test_an_order_that_is_tried_very_often_does_no_harm(database, customer, monkeypatch):
    (number,) = customer.numbers(1)
    monkeypatch.setattr(batching, "SLOW_PAUSE_SECONDS_MAX", 0)

    async def work(batcher):
        pending = asyncio.create_task(outcome(batcher, order(customer.id, number, api_key_id=customer.key_id), 30))
        await asyncio.to_thread(wait_until, lambda: tries and tries[0].tries > 1100)
        lock.close()
        return await pending

    tries, put = [], batching._SlowLane.put
    monkeypatch.setattr(batching._SlowLane, "put", lambda lane, pending: (tries.append(pending), put(lane, pending)))
    lock = database.engine.connect()
    lock.execute(text("SELECT FROM phone_number FOR UPDATE"))
    assert run(database.url, work, lock_timeout_ms=1) == "PLACED"


def test_orders_of_one_locked_number_do_not_hold_up_the_others(database, customer):
    """However many they are, one of them at a time is tried."""
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
            buying = outcome(batcher, order(customer.id, number, api_key_id=customer.key_id), timeout_seconds)
            return asyncio.create_task(buying)

        many = [buy(locked, 60) for _ in range(600)]
        one = buy(briefly, 5)
        await asyncio.sleep(1)  # all of them are in the slow lane
        brief.close()
        watching = asyncio.create_task(watch())
        answer = await one
        watching.cancel()
        assert not any(each.done() for each in many)
        long.close()
        return answer, await asyncio.gather(*many)

    long, brief = database.engine.connect(), database.engine.connect()
    for lock, number in ((long, locked), (brief, briefly)):
        lock.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": number})
    answer, answers = run(database.url, work, retry_connections=3)
    assert answer == "PLACED"
    assert max(counts) <= 2  # one for each of the two numbers
    assert Counter(answers) == {"PLACED": 1, Code.INSUFFICIENT_INVENTORY: 599}


def test_organizations_take_turns_in_the_slow_lane():
    waiting = queue(1, 1, 1, 2, 3)
    taken = [waiting.take_without({"+10"}) for _ in range(4)]
    assert [UUID(pending.order.organization_id).int for pending in taken] == [1, 2, 3, 1]
    assert [pending.order.numbers for pending in taken] == [("+00",), ("+30",), ("+40",), ("+20",)]
    assert waiting.take_without({"+10"}) is None
    assert waiting.length == 1
