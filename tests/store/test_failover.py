"""The database goes away, comes back, or is not at the first address: what callers get, and that orders continue."""

import asyncio
import socket
from contextlib import ExitStack, contextmanager
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from server import keys
from server.config import Settings
from server.errors import Code
from server.run.embedded import postgres
from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations, orders
from server.store.connection import DatabaseAway, PipelinedConnection, connect
from server.store.engine import admin_engine
from server.store.hosts import _hosts
from server.store.reads import KEYS, Reader
from server.store.transaction import BEGIN, Limits
from tests.store.test_unknown_outcomes import assigned
from tests.support.batcher import outcome, run
from tests.support.customer import Customer
from tests.support.orders import order_of
from tests.support.proxy import AFTER_COMMIT, BEFORE_BEGIN, Proxy
from tests.support.retries import is_serializable
from tests.support.stack import wait_until

REFUSING = 9  # the port of a protocol that nothing serves


def hosts(url, *ports):
    """The URL with other hosts before its own. Each is a port of this machine."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    host = ",".join(["127.0.0.1" for _ in ports] + [query["host"].replace("/", "%2F")])
    port = ",".join([str(port) for port in ports] + [query["port"]])
    return f"postgresql://{parts.path}?host={host}&port={port}&user={query['user']}"


@contextmanager
def silent_host():
    """A port that accepts connections and never sends anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def silent():
    with ExitStack() as stack:
        yield [stack.enter_context(silent_host()) for _ in range(2)]


def buy(batcher, customer, number, timeout_seconds=10.0):
    return outcome(batcher, order_of(customer, number), timeout_seconds)


# ---------------------------------------------------------------- several hosts


def test_an_order_that_expires_while_the_connection_opens_is_not_sent(database, customer, silent):
    hasty, patient = customer.numbers(2)

    async def work(batcher):
        return await asyncio.gather(buy(batcher, customer, hasty, 0.2), buy(batcher, customer, patient, 20))

    url = hosts(database.url, *silent)
    assert run(url, work, connect_timeout_ms=2000) == [Code.UNAVAILABLE, "PLACED"]
    assert customer.owned() == {patient}


@pytest.mark.parametrize("first", ["dead", "refusing", "dead dead"])
def test_orders_reach_the_next_host_when_the_first_does_not_answer(database, customer, silent, first):
    """Each caller waits for less time than the head start of one dead host."""
    numbers = customer.numbers(60)
    ports = {"dead": silent[:1], "refusing": [REFUSING], "dead dead": silent}[first]
    url, settings = hosts(database.url, *ports), Settings(connect_timeout_ms=2000)

    async def work(batcher):
        for number in numbers:
            if await buy(batcher, customer, number, 0.2) == "PLACED":
                return await buy(batcher, customer, customer.numbers(1)[0])
        return None

    async def look_up():
        reader = Reader(url, settings, KEYS)
        try:
            for _ in range(60):
                try:
                    return await reader.find_keys([keys.digest(customer.key)], 0.2)
                except DatabaseAway:
                    pass
        finally:
            await reader.close()

    assert run(url, work, connect_timeout_ms=2000) == "PLACED"
    assert asyncio.run(look_up()).keys() == {keys.digest(customer.key)}


def test_a_silent_host_does_not_delay_an_order_for_its_whole_timeout(database, customer, silent):
    url = hosts(database.url, *silent)
    (number,) = customer.numbers(1)
    assert run(url, lambda batcher: buy(batcher, customer, number, 20), connect_timeout_ms=60_000) == "PLACED"


def test_a_new_primary_is_found_while_another_host_is_silent(database, customer, silent):
    """It refuses at first, as a standby does."""
    (number,) = customer.numbers(1)

    def read_only(value):
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(database.url, autocommit=True, options=options) as connection:
            name = sql.Identifier(connection.info.dbname)
            connection.execute(
                sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(name, sql.SQL(value))
            )

    async def work(batcher):
        buying = asyncio.create_task(buy(batcher, customer, number, 20))
        await asyncio.sleep(1)
        assert not buying.done()
        read_only("off")
        return await buying

    read_only("on")
    assert run(hosts(database.url, silent[0]), work, connect_timeout_ms=60_000) == "PLACED"


def test_orders_continue_at_the_next_host_when_the_first_dies_under_load(database, customer):
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
    assert len(sold) >= 99  # at most the running one fails
    assert set(sold) <= customer.owned()


def test_while_the_server_is_read_only_orders_are_unavailable(postgres, database, customer):
    before, meanwhile, after = customer.numbers(3)

    def read_only(value):
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: _is_read_only(database) == value)

    async def work(batcher):
        responses = [await buy(batcher, customer, before)]
        await batcher.check()
        await asyncio.to_thread(read_only, "on")
        with pytest.raises(DatabaseAway):
            await batcher.check()
        responses.append(await buy(batcher, customer, meanwhile, 2))
        await asyncio.to_thread(read_only, "off")
        responses.append(await buy(batcher, customer, after))
        await batcher.check()
        return responses

    try:
        assert run(database.url, work) == ["PLACED", Code.UNAVAILABLE, "PLACED"]
    finally:
        read_only("off")
    assert customer.owned() == {before, after}


def _is_read_only(database):
    with psycopg.connect(database.url) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone()[0]


def test_a_connection_with_invalid_plans_is_replaced(database, customer):
    first, second = customer.numbers(2)

    async def work(batcher):
        responses = [await buy(batcher, customer, first)]
        with database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE phone_number ALTER number_type TYPE varchar(20)"))
        return [*responses, await buy(batcher, customer, second)]

    assert run(database.url, work) == ["PLACED", "PLACED"]


def test_a_connection_without_our_statements_is_replaced(database, customer):
    """A pooler may give us another session."""
    first, second = customer.numbers(2)

    async def work(batcher):
        responses = [await buy(batcher, customer, first)]
        await (await batcher._queues[0].connection._connection.get())._connection.execute("DEALLOCATE ALL")
        return [*responses, await buy(batcher, customer, second)]

    assert run(database.url, work) == ["PLACED", "PLACED"]


# ---------------------------------------------------------------- idle connections


def test_a_connection_that_died_while_idle_fails_no_order(database, customer):
    first, second = customer.numbers(2)

    async def work(batcher):
        responses = [await buy(batcher, customer, first)]
        proxy.silence()
        await batcher.check()  # as the server does each second
        return [*responses, await buy(batcher, customer, second, 3)]

    with Proxy(database.url) as proxy:
        assert run(proxy.url, work) == ["PLACED", "PLACED"]


def test_a_dead_retry_connection_fails_no_order(database, customer):
    """The order's first attempt finds it dead. The second uses a new one."""
    first, second = customer.numbers(2)

    async def blocked_for_a_while(batcher, number):
        lock = database.engine.connect()
        lock.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": number})
        waiting = asyncio.create_task(buy(batcher, customer, number))
        await asyncio.sleep(0.5)
        lock.close()
        return await waiting

    async def work(batcher):
        responses = [await blocked_for_a_while(batcher, first)]
        for connection in batcher._retries.connections:
            if connection._connection.is_open:
                await asyncio.to_thread(_end, database, await connection._connection.get())
        return [*responses, await blocked_for_a_while(batcher, second)]

    assert run(database.url, work, lock_timeout_ms=50) == ["PLACED", "PLACED"]


def _end(database, connection):
    with psycopg.connect(database.url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.backend_pid])


@pytest.mark.parametrize("garbage", [b"T\xff\xff\xff\xff", b"C\0\0\0\2"])
def test_after_bytes_outside_the_protocol_the_order_is_placed_on_a_new_connection(database, customer, garbage):
    first, second = customer.numbers(2)

    async def work(batcher):
        responses = [await buy(batcher, customer, first)]

        async def send_garbage(connection):
            connection.to_client.write(garbage)

        proxy.arm(BEFORE_BEGIN, send_garbage)
        return [*responses, await buy(batcher, customer, second)]

    with Proxy(database.url) as proxy:
        assert run(proxy.url, work) == ["PLACED", "PLACED"]


def test_after_any_error_since_the_write_was_sent_the_outcome_is_looked_up(database, customer, monkeypatch):
    (number,) = customer.numbers(1)
    io, left = PipelinedConnection._wait_for_socket, [1]

    async def fail_once(connection, **options):
        if left[0] and writing:
            left[0] = 0
            raise OSError("no file descriptor is left")
        await io(connection, **options)

    finish, writing = orders.finish, []

    async def finish_and_fail(*args):
        writing.append(True)
        await finish(*args)

    monkeypatch.setattr(orders, "finish", finish_and_fail)
    monkeypatch.setattr(PipelinedConnection, "_wait_for_socket", fail_once)
    assert run(database.url, lambda batcher: buy(batcher, customer, number)) == "PLACED"
    assert left == [0]


# ---------------------------------------------------------------- durability


@pytest.mark.parametrize(("default", "asked"), [("off", "on"), ("on", "on"), ("local", "local")])
def test_a_transaction_raises_synchronous_commit_when_the_database_has_it_off(database, default, asked):
    async def read():
        connection = await connect(database.url, Settings(), orders.STATEMENTS)
        try:
            await connection._connection.execute(f"SET synchronous_commit = {default}")
            await connection.run(BEGIN(), Limits(1, 1).statement())
            (row,) = await (await connection._connection.execute("SHOW synchronous_commit")).fetchall()
            return row[0]
        finally:
            await connection.close()

    assert asyncio.run(read()) == asked


@pytest.fixture
def replicating(open_path, monkeypatch):
    """A database that can wait for a standby, and a customer on it."""
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
def test_a_commit_whose_wait_for_a_standby_was_cancelled_is_not_acknowledged(replicating, comes_back):
    """PostgreSQL responses COMMIT, and a warning: the transaction is here, and may be lost with this server."""
    url, engine, customer = replicating
    (number,) = customer.numbers(1)
    set_standby(engine, "nobody")

    async def work(batcher):
        buying = asyncio.create_task(batcher.place(order_of(customer, number), 6))
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

    response = run(url, work, transaction_max_ms=2000)
    if comes_back:
        assert assigned(response) == customer.assignment_ids()
    else:
        assert response.code is Code.TIMEOUT


@pytest.mark.parametrize("are_sold", [True, False])
def test_unsettled_commits_have_a_limit(replicating, are_sold):
    """Each keeps its locks, even that of a refused order. Orders are refused until they have ended."""
    url, engine, customer = replicating
    customers = [Customer.open(engine) for _ in range(8)]
    numbers = customer.numbers(9)
    wanted = numbers if are_sold else ["+999"] * 8
    # At SERIALIZABLE an order conflicts with one whose COMMIT waits: the rows of these small tables share their pages.
    limit = 1 if is_serializable() else 3
    set_standby(engine, "nobody")

    async def work(batcher):
        responses = [await buy(batcher, one, number, 0.7) for one, number in zip(customers, wanted, strict=False)]
        left = waiting_for_a_standby(engine)
        with pytest.raises(DatabaseAway, match="wait for their COMMIT"):
            await batcher.check()
        set_standby(engine, "")
        await asyncio.to_thread(wait_until, lambda: not waiting_for_a_standby(engine))
        await batcher.check()
        return responses, left, await buy(batcher, customer, numbers[8])

    responses, left, after = run(url, work, unsettled_commits_max=limit, lock_timeout_ms=50)
    assert responses[:limit] == [Code.TIMEOUT] * limit
    assert responses[-1] is Code.UNAVAILABLE
    assert set(responses) == {Code.TIMEOUT, Code.UNAVAILABLE}
    assert len(left) <= 4  # one of the order connection and one of a retry connection may be added together
    assert after == "PLACED"


def test_an_idle_backend_is_no_unsettled_commit(database, customer):
    """It has ended its COMMIT. Only the result was lost with the network."""
    numbers = customer.numbers(2)

    async def go_silent(connection):
        connection.is_silent = True

    async def work(batcher):
        proxy.arm(AFTER_COMMIT, go_silent)
        response = await buy(batcher, customer, numbers[0], 2)
        await batcher.check()
        return response, await buy(batcher, customer, numbers[1])

    with Proxy(database.url, keeps_servers=True) as proxy:
        responses = run(proxy.url, work, unsettled_commits_max=1, transaction_max_ms=500)
        assert responses == ("PLACED", "PLACED")


@pytest.mark.parametrize("options", ["hostaddr=10.0.0.1", "port=1,2,3", "target_session_attrs=prefer-standby"])
def test_a_url_that_cannot_be_split_is_left_to_psycopg(options):
    url = f"postgresql://someone@a,b/database?{options}"
    assert _hosts(url) == [url]


def test_each_host_has_its_own_port_and_address():
    urls = _hosts("postgresql://someone@a:1,[::1]:2/database?hostaddr=10.0.0.1,::1")
    assert [[conninfo_to_dict(url)[name] for name in ("host", "hostaddr", "port")] for url in urls] == [
        ["a", "10.0.0.1", "1"],
        ["::1", "::1", "2"],
    ]
