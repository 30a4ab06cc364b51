"""The database goes away, comes back, or was never at the first address: what callers are told, and that it heals."""

import asyncio
import socket
from contextlib import ExitStack, contextmanager
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from sqlalchemy import text

from server import keys
from server.config import Settings
from server.errors import Code
from server.run.embedded import postgres
from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations, orders
from server.store.connection import DatabaseAway, PipelinedConnection, connect
from server.store.engine import admin_engine
from server.store.orders import Limits
from server.store.reads import Reader
from tests.faults.proxy import AFTER_COMMIT, BEFORE_BEGIN, Proxy
from tests.store.test_batching import assigned, order, outcome, run
from tests.support.customer import Customer
from tests.support.stack import wait_until

REFUSING = 9  # the port of a protocol that nothing serves


def hosts(url, *ports):
    """The URL with other hosts before its own: each a port of this machine."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    host = ",".join(["127.0.0.1" for _ in ports] + [query["host"].replace("/", "%2F")])
    port = ",".join([str(port) for port in ports] + [query["port"]])
    return f"postgresql://{parts.path}?host={host}&port={port}&user={query['user']}"


@contextmanager
def silent_host():
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def silent():
    with ExitStack() as stack:
        yield [stack.enter_context(silent_host()) for _ in range(2)]


def buy(batcher, customer, number, timeout_seconds=10.0):
    return outcome(batcher, order(customer.id, number, api_key_id=customer.key_id), timeout_seconds)


# ---------------------------------------------------------------- several hosts


def test_an_order_that_was_told_unavailable_while_the_connection_opened_is_not_sent(database, customer, silent):
    hasty, patient = customer.numbers(2)

    async def work(batcher):
        return await asyncio.gather(buy(batcher, customer, hasty, 0.5), buy(batcher, customer, patient, 20))

    url = hosts(database.url, silent[0])
    assert run(url, work, connect_timeout_ms=2000) == [Code.UNAVAILABLE, "PLACED"]
    assert customer.owned() == {patient}


@pytest.mark.parametrize("first", ["dead", "refusing", "dead dead"])
def test_a_host_that_does_not_answer_only_delays(database, customer, silent, first):
    """Though each caller waits for less time than one dead host takes."""
    numbers = customer.numbers(60)
    ports = {"dead": silent[:1], "refusing": [REFUSING], "dead dead": silent}[first]
    url, settings = hosts(database.url, *ports), Settings(connect_timeout_ms=2000)

    async def work(batcher):
        for number in numbers:
            if await buy(batcher, customer, number, 0.5) == "PLACED":
                return await buy(batcher, customer, customer.numbers(1)[0])
        return None

    async def look_up():
        reader = Reader(url, settings, 0.5)
        try:
            for _ in range(60):
                try:
                    return await reader.find_keys([keys.digest(customer.key)])
                except DatabaseAway:
                    pass
        finally:
            await reader.close()

    assert run(url, work, connect_timeout_ms=2000) == "PLACED"
    assert asyncio.run(look_up()).keys() == {keys.digest(customer.key)}


def test_orders_go_on_at_the_next_host_when_the_first_dies_under_load(database, customer):
    numbers = customer.numbers(100)

    async def work(batcher):
        sold = []
        for i, number in enumerate(numbers):
            if i == 20:
                first.swallow(True)
            if await buy(batcher, customer, number, 20) == "PLACED":
                sold.append(number)
        return sold

    with Proxy(database.url) as first:
        url = hosts(database.url, urlsplit(first.url).port) + "&sslmode=disable&gssencmode=disable"
        sold = run(url, work, connect_timeout_ms=2000, transaction_max_ms=1000)
        first.swallow(False)
    assert len(sold) >= 99  # at most the one that was under way
    assert set(sold) <= customer.owned()


def test_a_read_only_server_is_no_database_and_heals_by_itself(postgres, database, customer):
    before, meanwhile, after = customer.numbers(3)

    def read_only(value):
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: _is_read_only(database) == value)

    async def work(batcher):
        answers = [await buy(batcher, customer, before)]
        await batcher.check()
        await asyncio.to_thread(read_only, "on")
        with pytest.raises(DatabaseAway):
            await batcher.check()
        answers.append(await buy(batcher, customer, meanwhile, 2))
        await asyncio.to_thread(read_only, "off")
        answers.append(await buy(batcher, customer, after))
        await batcher.check()
        return answers

    try:
        assert run(database.url, work) == ["PLACED", Code.UNAVAILABLE, "PLACED"]
    finally:
        read_only("off")
    assert customer.owned() == {before, after}


def _is_read_only(database):
    with psycopg.connect(database.url) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone()[0]


def test_a_connection_whose_plans_are_no_longer_valid_is_replaced(database, customer):
    first, second = customer.numbers(2)

    async def work(batcher):
        answers = [await buy(batcher, customer, first)]
        with database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE phone_number ALTER number_type TYPE varchar(20)"))
        return [*answers, await buy(batcher, customer, second)]

    assert run(database.url, work) == ["PLACED", "PLACED"]


def test_a_session_that_lost_its_statements_is_replaced(database, customer):
    """As a pooler does that gives us another one."""
    first, second = customer.numbers(2)

    async def work(batcher):
        answers = [await buy(batcher, customer, first)]
        await (await batcher._lanes[0].connection._connection.get())._connection.execute("DEALLOCATE ALL")
        return [*answers, await buy(batcher, customer, second)]

    assert run(database.url, work) == ["PLACED", "PLACED"]


# ---------------------------------------------------------------- idle connections


def test_a_connection_that_died_while_idle_costs_no_order(database, customer):
    first, second = customer.numbers(2)

    async def work(batcher):
        answers = [await buy(batcher, customer, first)]
        proxy.silence()
        await batcher.check()  # as the server does each second
        return [*answers, await buy(batcher, customer, second, 3)]

    with Proxy(database.url) as proxy:
        assert run(proxy.url, work) == ["PLACED", "PLACED"]


def test_a_dead_connection_of_the_slow_lane_costs_no_order(database, customer):
    """It was lost in silence; the order's first attempt there finds out, and it is tried again on a new one."""
    first, second = customer.numbers(2)

    async def blocked_for_a_while(batcher, number):
        lock = database.engine.connect()
        lock.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": number})
        waiting = asyncio.create_task(buy(batcher, customer, number))
        await asyncio.sleep(0.5)
        lock.close()
        return await waiting

    async def work(batcher):
        answers = [await blocked_for_a_while(batcher, first)]
        for connection in batcher._slow.connections:
            if connection._connection.is_open:
                await asyncio.to_thread(_end, database, await connection._connection.get())
        return [*answers, await blocked_for_a_while(batcher, second)]

    assert run(database.url, work, lock_timeout_ms=50) == ["PLACED", "PLACED"]


def _end(database, connection):
    with psycopg.connect(database.url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.backend_pid])


@pytest.mark.parametrize("garbage", [b"T\xff\xff\xff\xff", b"C\0\0\0\2"])
def test_bytes_that_are_no_protocol_end_the_connection_and_nothing_else(database, customer, garbage):
    first, second = customer.numbers(2)

    async def work(batcher):
        answers = [await buy(batcher, customer, first)]

        async def send_garbage(connection):
            connection.to_client.write(garbage)

        proxy.arm(BEFORE_BEGIN, send_garbage)
        return [*answers, await buy(batcher, customer, second)]

    with Proxy(database.url) as proxy:
        assert run(proxy.url, work) == ["PLACED", "PLACED"]


def test_whatever_fails_after_the_write_was_sent_its_outcome_is_looked_up(database, customer, monkeypatch):
    (number,) = customer.numbers(1)
    io, left = PipelinedConnection._io, [1]

    async def fail_once(connection, **options):
        if left[0] and writing:
            left[0] = 0
            raise OSError("no file descriptor is left")
        await io(connection, **options)

    finish, writing = orders._finish, []

    async def finish_and_fail(*args):
        writing.append(True)
        await finish(*args)

    monkeypatch.setattr(orders, "_finish", finish_and_fail)
    monkeypatch.setattr(PipelinedConnection, "_io", fail_once)
    assert run(database.url, lambda batcher: buy(batcher, customer, number)) == "PLACED"
    assert left == [0]


# ---------------------------------------------------------------- durability


@pytest.mark.parametrize(("default", "asked"), [("off", "on"), ("on", "on"), ("local", "local")])
def test_a_transaction_waits_for_the_disk_though_the_database_turns_that_off_meanwhile(database, default, asked):
    async def read():
        connection = await connect(database.url, Settings(), orders.STATEMENTS)
        try:
            await connection._connection.execute(f"SET synchronous_commit = {default}")
            await connection.run(orders.BEGIN(), Limits(1, 1).call())
            (row,) = await (await connection._connection.execute("SHOW synchronous_commit")).fetchall()
            return row[0]
        finally:
            await connection.close()

    assert asyncio.run(read()) == asked


@pytest.fixture
def replicating(open_path, monkeypatch):
    """A database that can be told to wait for a standby, and an organization on it."""
    for name, value in {"wal_level": "replica", "max_wal_senders": "1"}.items():
        monkeypatch.setitem(postgres.SETTINGS, name, value)
    with EmbeddedPostgres(open_path / "database", fsync=False) as replicating:
        engine = admin_engine(replicating.url())
        migrations.upgrade(engine)
        yield replicating.url(), engine, Customer.open(engine)
        set_standby(engine, "")


def set_standby(engine, name):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'"))
        connection.execute(text("SELECT pg_reload_conf()"))


def waiting_for_a_standby(engine):
    waiters = text("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    with engine.connect() as connection:
        return connection.execute(waiters).scalars().all()


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_cancelled_wait_for_a_standby_is_not_acknowledged(replicating, comes_back):
    """PostgreSQL answers COMMIT, and a warning: the transaction is here, and may be lost with this server."""
    url, engine, customer = replicating
    (number,) = customer.numbers(1)
    set_standby(engine, "nobody")

    async def work(batcher):
        buying = asyncio.create_task(batcher.place(order(customer.id, number, api_key_id=customer.key_id), 6))
        await asyncio.to_thread(wait_until, lambda: waiting_for_a_standby(engine))
        (pid,) = waiting_for_a_standby(engine)
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": pid})
        await asyncio.to_thread(wait_until, customer.owned)
        done, _ = await asyncio.wait({buying}, timeout=0.5)
        assert not done
        if comes_back:
            set_standby(engine, "")
        return (await asyncio.gather(buying, return_exceptions=True))[0]

    answer = run(url, work, transaction_max_ms=2000)
    if comes_back:
        assert assigned(answer) == customer.assignment_ids()
    else:
        assert answer.code is Code.TIMEOUT


@pytest.mark.parametrize("are_sold", [True, False])
def test_commits_that_are_left_behind_are_bounded(replicating, are_sold):
    """Each keeps its locks, a refused order's too. Orders are refused until they have ended, and then taken again."""
    url, engine, customer = replicating
    customers = [Customer.open(engine) for _ in range(8)]
    numbers = customer.numbers(9)
    wanted = numbers if are_sold else ["+999"] * 8
    set_standby(engine, "nobody")

    async def work(batcher):
        answers = [await buy(batcher, one, number, 0.7) for one, number in zip(customers, wanted, strict=False)]
        left = waiting_for_a_standby(engine)
        with pytest.raises(DatabaseAway, match="wait for their COMMIT"):
            await batcher.check()
        set_standby(engine, "")
        await asyncio.to_thread(wait_until, lambda: not waiting_for_a_standby(engine))
        await batcher.check()
        return answers, left, await buy(batcher, customer, numbers[8])

    answers, left, after = run(url, work, unsettled_commits_max=3, lock_timeout_ms=50)
    assert answers[:3] == [Code.TIMEOUT] * 3
    assert answers[-1] is Code.UNAVAILABLE
    assert set(answers) == {Code.TIMEOUT, Code.UNAVAILABLE}
    assert len(left) <= 4  # the lane's and the slow lane's may come in together
    assert after == "PLACED"


def test_a_backend_that_only_does_not_know_that_we_are_gone_is_not_counted(database, customer):
    """It has ended its COMMIT, whose answer was lost with the network."""
    numbers = customer.numbers(2)

    async def go_silent(connection):
        connection.is_silent = True

    async def work(batcher):
        proxy.arm(AFTER_COMMIT, go_silent)
        answer = await buy(batcher, customer, numbers[0], 2)
        await batcher.check()
        return answer, await buy(batcher, customer, numbers[1])

    with Proxy(database.url, keeps_servers=True) as proxy:
        answers = run(proxy.url, work, unsettled_commits_max=1, transaction_max_ms=500)
        assert answers == ("PLACED", "PLACED")
