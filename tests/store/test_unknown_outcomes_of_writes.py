"""Writes whose COMMIT was sent without a result. Each is run again, is carried out once, and gets its response."""

import asyncio
import os
import signal

import pytest
from sqlalchemy import text

from server import one_by_one
from server.errors import Code
from server.store import writes
from server.store.transaction import OutcomeUnknown
from tests.support.batcher import outcome as outcome_of_order
from tests.support.inventory import all_rows, values_of
from tests.support.orders import order_of
from tests.support.proxy import AFTER_COMMIT, BEFORE_COMMIT, Proxy
from tests.support.stack import wait_until
from tests.support.writes import CHANGING, KINDS, keyed, outcome, run, run_both

STORED = "SELECT answer FROM idempotency_key WHERE organization_id = :id"


async def cut(connection):
    connection.cut()


WITH_KEY = [(kind, True) for kind in KINDS]
# Without a key the others write nothing, so nothing about them can be unknown.
CASES = [*WITH_KEY, *((kind, False) for kind in CHANGING)]


def new_write(database, customer, kind, is_keyed):
    write = KINDS[kind](database.url, customer)
    return keyed(write) if is_keyed else write


@pytest.mark.parametrize("point", [BEFORE_COMMIT, AFTER_COMMIT])
@pytest.mark.parametrize(("kind", "is_keyed"), CASES)
def test_a_write_whose_connection_was_cut_at_its_commit_is_carried_out_once(database, customer, kind, is_keyed, point):
    write = new_write(database, customer, kind, is_keyed)
    rows = []

    async def work(writer):
        at_commit = proxy.arm(point, after)
        response = await writer.carry_out(write, 10)
        assert at_commit.is_set()
        return response

    async def after(connection):
        if point is AFTER_COMMIT:
            rows.append(all_rows(customer))
        await cut(connection)

    before = all_rows(customer)
    with Proxy(database.url) as proxy:
        response = run(proxy.url, work)
    assert not response.is_replayed
    assert all_rows(customer) != before
    if rows:
        assert all_rows(customer) == rows[0], "it was written twice"
    if is_keyed:
        assert values_of(customer, STORED, id=customer.id) == [response.message]


@pytest.mark.parametrize(("kind", "is_keyed"), CASES)
def test_three_lost_results_in_a_row_change_nothing(database, customer, kind, is_keyed, monkeypatch):
    write = new_write(database, customer, kind, is_keyed)
    finish, lost, seen = writes.finish, [], []

    async def lose(connection, statements, sent):
        await finish(connection, statements, sent)
        if len(lost) < 3:
            lost.append(sent)
            seen.append(all_rows(customer))
            connection.cut()
            raise OutcomeUnknown(sent)

    monkeypatch.setattr(writes, "finish", lose)
    response = run(database.url, lambda writer: writer.carry_out(write, 10))
    assert not response.is_replayed
    assert len(lost) == 3
    assert seen == [seen[0]] * 3
    assert all_rows(customer) == seen[0]
    assert response.message == lost[0][write.id].response


@pytest.fixture
def freeze_commit(monkeypatch):
    """Freeze the backend of the next write with its COMMIT. Returns a list that has its process id then."""

    def arm():
        finish, frozen = writes.finish, []

        async def freeze(connection, statements, sent):
            if frozen or not sent:
                return await finish(connection, statements, sent)
            frozen.append(connection.backend_pid)
            os.kill(frozen[0], signal.SIGSTOP)
            sending = asyncio.create_task(finish(connection, statements, sent))
            await asyncio.wait({sending}, timeout=0.1)
            sending.cancel()
            await asyncio.wait({sending})
            connection.cut()
            raise OutcomeUnknown(sent)

        monkeypatch.setattr(writes, "finish", freeze)
        return frozen

    return arm


@pytest.mark.parametrize("deadline_seconds", [1.0, 10.0])
@pytest.mark.parametrize("kind", ["hold", "bulk order"])
def test_a_commit_that_is_still_running_is_not_taken_for_a_rollback(
    database, customer, freeze_commit, kind, deadline_seconds
):
    """Its backend is frozen. The write is not visible when we look, and is carried out later."""
    write = new_write(database, customer, kind, is_keyed=False)
    frozen, before = freeze_commit(), all_rows(customer)

    async def work(writer):
        waiting = asyncio.create_task(writer.carry_out(write, deadline_seconds))
        await asyncio.wait({waiting}, timeout=1.5)
        os.kill(frozen[0], signal.SIGCONT)
        return (await asyncio.gather(waiting, return_exceptions=True))[0]

    response = run(database.url, work, lock_timeout_ms=20)
    wait_until(lambda: all_rows(customer) != before)
    if deadline_seconds < 1.5:
        assert response.code is Code.TIMEOUT
    else:
        assert not response.is_replayed
    events = "SELECT count(*) FROM number_event WHERE organization_id = :id"
    counts = values_of(
        customer, f"({events}) UNION ALL SELECT count(*) FROM orders WHERE organization_id = :id", id=customer.id
    )
    assert counts == ([2, 0] if kind == "hold" else [0, 1])


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
@pytest.mark.parametrize("kind", ["route", "end hold that keeps nothing"])
def test_a_write_that_commits_while_we_wait_to_settle_it_gets_its_response(
    database, customer, monkeypatch, freeze_commit, until_a_transaction_waits, kind, isolation
):
    """Its key expires meanwhile. At SERIALIZABLE an attempt does not see what commits while it waits for its locks."""
    write = new_write(database, customer, kind, is_keyed=False)
    frozen = freeze_commit()
    monkeypatch.setattr(one_by_one, "LOCK_SECONDS_MIN", 20)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE api_key SET expires_at = clock_timestamp() + interval '3 s'"))

    async def work(writer):
        waiting = asyncio.create_task(writer.carry_out(write, 20))
        await asyncio.to_thread(wait_until, lambda: frozen)
        await asyncio.to_thread(until_a_transaction_waits)
        await asyncio.to_thread(wait_until, lambda: values_of(customer, "SELECT expires_at < now() FROM api_key")[0])
        os.kill(frozen[0], signal.SIGCONT)
        return await waiting

    assert run(database.url, work, isolation=isolation, lock_timeout_ms=20_000, transaction_max_ms=20_000).message


def test_after_the_revocation_of_its_key_a_write_with_an_unknown_outcome_gets_its_response(
    database, customer, monkeypatch
):
    """It was carried out before. A refusal would say that it was not."""
    write = new_write(database, customer, "hold", is_keyed=False)
    finish = writes.finish

    async def lose(connection, statements, sent):
        await finish(connection, statements, sent)
        monkeypatch.setattr(writes, "finish", finish)
        await asyncio.to_thread(customer.revoke)
        connection.cut()
        raise OutcomeUnknown(sent)

    monkeypatch.setattr(writes, "finish", lose)
    assert run(database.url, lambda writer: writer.carry_out(write, 10)).message


def test_the_commit_of_a_write_that_is_not_settled_counts_for_all_writes(database, customer):
    """Then orders and other writes are refused, until the database says that it has ended."""
    held, sold = KINDS["hold"](database.url, customer), KINDS["bulk order"](database.url, customer)
    order = order_of(customer, *customer.numbers(1))

    async def go_silent(connection):
        connection.is_silent = True

    async def work(batcher, writer):
        proxy.arm(AFTER_COMMIT, go_silent)
        codes = [await outcome(writer, held, 0.5)]
        await asyncio.to_thread(wait_until, lambda: writer.is_full and batcher.is_full)
        codes += [await outcome(writer, sold), await outcome_of_order(batcher, order)]
        await batcher.check()
        return [*codes, await outcome(writer, sold), await outcome_of_order(batcher, order)]

    with Proxy(database.url, keeps_servers=True) as proxy:
        codes = run_both(proxy.url, work, unsettled_commits_max=1, transaction_max_ms=500)
    assert codes == [Code.TIMEOUT, Code.UNAVAILABLE, Code.UNAVAILABLE, "DONE", "PLACED"]
