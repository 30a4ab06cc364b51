"""The writer: what the callers of writes get when rows are locked, time is short, or the database is away."""

import asyncio
from collections import Counter

import pytest
from sqlalchemy import text
from uuid_utils.compat import uuid7

from server.admission import Shared
from server.config import Settings
from server.errors import Code
from server.rules.values import Choose, Criteria, EndHold, Hold, Idempotency, Release, Routing
from server.store import bulk_orders, writes
from server.writing import Writer
from tests.support.batcher import new_batcher
from tests.support.batcher import outcome as outcome_of_order
from tests.support.customer import Customer
from tests.support.inventory import all_rows, new_area_code, stock, values_of
from tests.support.orders import order_of
from tests.support.stack import wait_until
from tests.support.writes import HELD_MAX, KINDS, REST_MS, buy, keyed, outcome, run, run_both, write_of

NOWHERE = "postgresql://127.0.0.1:9/none"


def hold_of(customer, *numbers):
    return write_of(customer, Hold(numbers, 10, HELD_MAX))


def held_by(customer):
    return set(values_of(customer, "SELECT number FROM phone_number WHERE held_by = :id", id=customer.id))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", ["hold", "bulk order"])
def test_without_a_database_a_write_is_unavailable(database, customer, kind):
    write = KINDS[kind](database.url, customer)
    assert run(NOWHERE, lambda writer: outcome(writer, write)) is Code.UNAVAILABLE


@pytest.mark.parametrize("kind", ["hold", "bulk order"])
def test_writes_continue_after_the_database_was_restarted(database, customer, kind):
    write, other = KINDS[kind](database.url, customer), KINDS["hold"](database.url, customer)

    async def work(writer):
        before = [await outcome(writer, other)]
        with database.engine.begin() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                     " AND datname = current_database() AND backend_type = 'client backend'")
            )  # fmt: skip
        return [*before, await outcome(writer, write)]

    assert run(database.url, work) == ["DONE", "DONE"]


def test_beyond_the_limit_writes_are_refused_at_once(database, customer, until_a_transaction_waits):
    numbers = customer.numbers(12)

    async def work(writer):
        def hold(number):
            return asyncio.create_task(outcome(writer, hold_of(customer, number)))

        taken = [hold(number) for number in numbers[:10]]
        await asyncio.to_thread(until_a_transaction_waits)
        assert writer.is_full
        refused = hold(numbers[10])
        await asyncio.sleep(0)  # one step is all that it needs
        assert refused.done()
        assert not any(waiting.done() for waiting in taken)
        lock.close()
        return await refused, await asyncio.gather(*taken), await hold(numbers[11])

    lock = database.engine.connect()
    lock.execute(text("SELECT FROM organization FOR UPDATE"))
    assert run(database.url, work, writes_in_progress_max=10) == (Code.UNAVAILABLE, ["DONE"] * 10, "DONE")
    assert held_by(customer) == {*numbers[:10], numbers[11]}


def test_a_failure_of_one_write_fails_no_other(database, customer, monkeypatch):
    bad, *others = (hold_of(customer, number) for number in customer.numbers(4))
    decide = writes._decide

    def breaks(write, *args):
        return 1 / 0 if write is bad else decide(write, *args)

    monkeypatch.setattr(writes, "_decide", breaks)

    async def work(writer):
        return await asyncio.gather(*(outcome(writer, write) for write in (bad, *others)))

    assert run(database.url, work) == [Code.INTERNAL, *["DONE"] * 3]


# ---------------------------------------------------------------- rows that another transaction keeps locked


@pytest.fixture
def lock(database):
    """Lock rows until the end of the test, or until the returned connection is closed."""
    with database.engine.connect() as connection:

        def lock(query, **parameters):
            connection.execute(text(f"SELECT FROM {query} FOR UPDATE"), parameters)
            return connection

        yield lock


def test_a_write_that_waits_for_a_locked_number_delays_no_other(database, customer, lock):
    locked, *free = customer.numbers(11)
    held = lock("phone_number WHERE number = :n", n=locked)

    async def work(writer):
        def hold(number):
            return asyncio.create_task(outcome(writer, hold_of(customer, number)))

        waiting, *others = [hold(number) for number in (locked, *free)]
        assert await asyncio.gather(*others) == ["DONE"] * 10
        assert not waiting.done()
        held.close()
        return await waiting

    assert run(database.url, work) == "DONE"


def test_a_locked_organization_delays_no_other(database, customer, lock):
    """Even if it has many writes. They wait for their turns."""
    other = Customer.open(database.engine)
    mine, theirs = customer.numbers(40), customer.numbers(40)
    held = lock("organization WHERE id = :id", id=customer.id)

    async def work(writer):
        waiting = [asyncio.create_task(outcome(writer, hold_of(customer, number), 60)) for number in mine]
        assert await asyncio.gather(*(outcome(writer, hold_of(other, n), 20) for n in theirs)) == ["DONE"] * 40
        assert not any(each.done() for each in waiting)
        held.close()
        return await asyncio.gather(*waiting)

    assert run(database.url, work) == ["DONE"] * 40


@pytest.mark.parametrize("kind", ["hold", "end hold", "route", "release", "bulk order"])
def test_a_write_of_a_row_that_stays_locked_is_unavailable_and_leaves_nothing(database, customer, lock, kind):
    write = KINDS[kind](database.url, customer)
    before = all_rows(customer)

    async def work(writer):
        held = lock("organization")
        refused = await outcome(writer, write, 0.5)
        assert all_rows(customer) == before
        held.close()
        return refused, await outcome(writer, write._replace(id=str(uuid7())))

    assert run(database.url, work, lock_timeout_ms=10) == (Code.UNAVAILABLE, "DONE")


def test_a_row_locked_for_long_leaves_no_backend_waiting(database, customer, lock):
    write = KINDS["hold"](database.url, customer)
    lock("phone_number")
    waiters = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"

    async def work(writer):
        return await outcome(writer, write, 1.0), values_of(customer, waiters)

    assert run(database.url, work, lock_timeout_ms=10_000) == (Code.UNAVAILABLE, [0])


def test_a_write_that_was_not_sent_before_its_deadline_is_unavailable(
    database, customer, lock, until_a_transaction_waits
):
    begun, behind = customer.numbers(2)
    held = lock("phone_number")

    async def work(writer):
        first = asyncio.create_task(outcome(writer, hold_of(customer, begun), 10))
        await asyncio.to_thread(until_a_transaction_waits)
        responses = [await outcome(writer, hold_of(customer, behind), 0.2)]
        held.close()
        return [*responses, await first]

    responses = run(database.url, work, lock_timeout_ms=5000, write_connections=1)
    assert responses == [Code.UNAVAILABLE, "DONE"]
    assert held_by(customer) == {begun}


def test_when_a_caller_leaves_its_write_is_dropped_unless_it_was_sent(
    database, customer, lock, until_a_transaction_waits
):
    began, dropped = customer.numbers(2)
    held = lock("organization")

    async def work(writer):
        first = asyncio.create_task(writer.carry_out(hold_of(customer, began), 10))
        await asyncio.to_thread(until_a_transaction_waits)
        second = asyncio.create_task(writer.carry_out(hold_of(customer, dropped), 10))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        held.close()
        assert await asyncio.gather(first, second, return_exceptions=True)

    run(database.url, work, lock_timeout_ms=5000, write_connections=1)
    assert held_by(customer) == {began}


# ---------------------------------------------------------------- unknown outcomes that stay unknown


@pytest.mark.parametrize("kind", ["hold", "bulk order"])
def test_a_write_with_an_unknown_outcome_times_out_when_the_database_goes_away(database, customer, monkeypatch, kind):
    """After 503 a caller would send it again."""
    write = keyed(KINDS[kind](database.url, customer))
    finish = writes.finish

    async def lose(connection, statements, sent):
        await finish(connection, statements, sent)
        connection.cut()
        monkeypatch.setattr(writes, "run", fail)
        raise writes.transaction.OutcomeUnknown(sent)

    async def fail(*_):
        raise writes.transaction.DatabaseAway("it is away")

    monkeypatch.setattr(writes, "finish", lose)
    assert run(database.url, lambda writer: outcome(writer, write, 1.0)) is Code.TIMEOUT


# ---------------------------------------------------------------- idempotency keys


def test_concurrent_writes_with_the_same_key_are_carried_out_once(database, customer):
    (number,) = customer.numbers(1)
    again = [keyed(hold_of(customer, number)) for _ in range(20)]

    async def work(writer):
        return await asyncio.gather(*(writer.carry_out(write, 10) for write in again))

    responses = run(database.url, work)
    assert len({response.message for response in responses}) == 1
    assert sorted(response.is_replayed for response in responses) == [False] + [True] * 19
    assert values_of(customer, "SELECT count(*) FROM hold") == [1]


@pytest.mark.parametrize("kind", ["hold", "release", "bulk order"])
def test_writes_with_the_same_key_in_several_workers_are_carried_out_once(database, customer, kind):
    write = keyed(KINDS[kind](database.url, customer))

    async def main():
        writers = [Writer(Settings(), database.url, Shared(Settings())) for _ in range(4)]
        try:
            attempts = [(writer, write._replace(id=str(uuid7()))) for writer in writers for _ in range(2)]
            return await asyncio.gather(*(writer.carry_out(each, 20) for writer, each in attempts))
        finally:
            await asyncio.gather(*(writer.close() for writer in writers))

    responses = asyncio.run(main())
    assert len({response.message for response in responses}) == 1
    assert [response.is_replayed for response in responses].count(False) == 1


def test_an_order_and_another_write_with_the_same_key_are_not_both_carried_out(database, customer):
    numbers = customer.numbers(20)

    async def work(batcher, writer):
        async def both(i, number):
            order, hold = order_of(customer, number), keyed(hold_of(customer, number), f"k{i}")
            order = order._replace(idempotency=hold.idempotency._replace(method=None, fingerprint=b"an order"))
            return await asyncio.gather(outcome_of_order(batcher, order), outcome(writer, hold))

        return await asyncio.gather(*(both(i, number) for i, number in enumerate(numbers)))

    outcomes = Counter(map(tuple, run_both(database.url, work)))
    assert set(outcomes) <= {("PLACED", Code.IDEMPOTENCY_KEY_REUSED), (Code.IDEMPOTENCY_KEY_REUSED, "DONE")}


def test_an_order_that_has_claimed_its_key_and_another_write_with_it_are_not_both_carried_out(
    database, customer, lock, until_a_transaction_waits
):
    """A retried order claims its key before it has its locks. Another write needs the key after it has them."""
    number, other = customer.numbers(2)
    held = lock("phone_number WHERE number = :n", n=number)

    async def main():
        settings = Settings()
        batcher, writer = new_batcher(database.url), Writer(settings, database.url, Shared(settings))
        hold = keyed(hold_of(customer, other))
        order = order_of(customer, number)._replace(idempotency=Idempotency("k", b"an order"))
        ordering = asyncio.create_task(outcome_of_order(batcher, order))
        await asyncio.to_thread(until_a_transaction_waits)
        holding = asyncio.create_task(outcome(writer, hold))
        await asyncio.wait({holding}, timeout=0.3)
        held.close()
        try:
            return await ordering, await holding
        finally:
            await batcher.close()
            await writer.close()

    outcomes = asyncio.run(main())
    assert outcomes in [("PLACED", Code.IDEMPOTENCY_KEY_REUSED), (Code.IDEMPOTENCY_KEY_REUSED, "DONE")]


def test_a_refusal_leaves_the_key_free(database, customer):
    (number,) = customer.numbers(1)

    async def work(writer):
        poor = await outcome(writer, keyed(hold_of(customer, number, "+999")))
        return poor, await outcome(writer, keyed(hold_of(customer, number)))

    assert run(database.url, work) == (Code.INSUFFICIENT_INVENTORY, "DONE")


# ---------------------------------------------------------------- bulk orders


def bulk_order_of(customer, area_code, quantity):
    ids = tuple(str(uuid7()) for _ in range(quantity))
    return write_of(customer, Choose(quantity, Criteria(area_code), ids, Routing()))


def test_a_bulk_order_waits_for_numbers_that_others_may_not_get(database, customer, lock):
    area_code = new_area_code()
    numbers = stock(customer, area_code, 5)
    held = lock("phone_number WHERE number = :n", n=numbers[2])

    async def work(writer):
        waiting = asyncio.create_task(outcome(writer, bulk_order_of(customer, area_code, 5)))
        await asyncio.wait({waiting}, timeout=0.3)
        assert not waiting.done()
        held.close()
        return await waiting, await outcome(writer, bulk_order_of(customer, area_code, 1))

    assert run(database.url, work) == ("DONE", Code.INSUFFICIENT_INVENTORY)
    assert customer.owned() == set(numbers)


def test_a_bulk_order_that_loses_its_numbers_after_its_search_searches_again(database, customer, monkeypatch):
    area_code, other = new_area_code(), Customer.open(database.engine)
    monkeypatch.setattr(bulk_orders, "SPARE_NUMBERS", 0)
    stock(customer, area_code, 10)
    propose, taken = writes.bulk_orders.propose, []

    async def propose_and_lose(connection, write):
        write = await propose(connection, write)
        if not taken:
            taken.extend(write.action.proposed)
            await asyncio.to_thread(buy, database.url, other, *taken)
        return write

    monkeypatch.setattr(writes.bulk_orders, "propose", propose_and_lose)
    assert run(database.url, lambda writer: outcome(writer, bulk_order_of(customer, area_code, 4))) == "DONE"
    assert len(customer.owned()) == 4
    assert not customer.owned() & set(taken)


# ---------------------------------------------------------------- what is given back


def test_numbers_of_a_release_and_of_a_hold_do_not_stay_locked_between_attempts(database, customer, lock):
    """While the organization is locked, each attempt ends and leaves the numbers to others."""
    ids = buy(database.url, customer, *customer.numbers(2))
    made = hold_of(customer, *customer.numbers(2))
    unlocked = text("SELECT count(*) FROM phone_number")

    async def work(writer):
        assert await outcome(writer, made) == "DONE"
        held = lock("organization")
        waiting = [
            asyncio.create_task(outcome(writer, write))
            for write in (write_of(customer, Release(tuple(ids), REST_MS, True)), write_of(customer, EndHold(made.id)))
        ]
        await asyncio.to_thread(wait_until, numbers_are_unlocked)
        held.close()
        return await asyncio.gather(*waiting)

    def numbers_are_unlocked():
        with database.engine.connect() as connection:
            free = connection.execute(text("SELECT FROM phone_number FOR UPDATE SKIP LOCKED")).rowcount
            return free == connection.execute(unlocked).scalar_one()

    assert run(database.url, work, lock_timeout_ms=20) == ["DONE", "DONE"]
