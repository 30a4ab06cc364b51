"""Between server and PostgreSQL: connections cut around the COMMIT, nothing delivered, everything late, a standby that
does not answer. Clients that send again find out what became of their orders."""

import itertools
import random
import socket
import time
from collections import Counter
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from server.run.embedded import postgres
from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations
from server.store.engine import admin_engine
from tests.faults.proxy import AFTER_COMMIT, BEFORE_BEGIN, BEFORE_COMMIT
from tests.faults.workload import Workload
from tests.support.callers import Rest
from tests.support.customer import Customer
from tests.support.stack import Up, local_settings, wait_until


async def cut(connection):
    connection.cut()


def test_connections_cut_at_commit_or_swallowed_or_slow(behind_proxy, proxy, engine, times):
    faults = times(10, 200)
    chance = random.Random(13)
    with Workload(engine, behind_proxy.settings.rest_port, numbers=1000 * faults) as load:
        kinds = (
            BEFORE_COMMIT,
            AFTER_COMMIT,
            "late",
            AFTER_COMMIT,
            BEFORE_BEGIN,
            AFTER_COMMIT,
            BEFORE_COMMIT,
            "swallowed",
        )
        for _, kind in zip(range(faults), itertools.cycle(kinds)):
            load.until_sold_more(5)
            if kind == "swallowed":
                proxy.swallow(True)
                time.sleep(chance.uniform(0.5, 6))  # shorter and longer than a transaction may take
                proxy.swallow(False)
            elif kind == "late":
                proxy.delay_seconds = 0.2
                load.until_sold_more(20)
                proxy.delay_seconds = 0
            else:
                assert proxy.arm(kind, cut).wait(30), f"no order came to {kind}"
    load.verify()


def test_orders_sent_once_are_answered_truly_though_the_first_host_is_silent(proxy, engine, open_path, times):
    """Each lost connection costs two seconds at the silent host, longer than many callers wait."""
    parts = urlsplit(proxy.url)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{parts.port}"
        settings = local_settings(
            open_path / ".data",
            database_url=f"postgresql://{parts.username}@{hosts}{parts.path}?{parts.query}",
            connect_timeout_ms=2000,
        )
        with Up(settings, open_path, "--no-demo") as up:
            up.until_ready()
            with Workload(engine, settings.rest_port, numbers=40_000, deadlines=(0.3, 4.0)) as load:
                for fault in range(times(6, 100)):
                    load.until_sold_more(20)
                    if fault % 3 == 0:
                        with engine.begin() as connection:
                            connection.execute(LOCK, {"numbers": load.next_numbers(40)})
                            time.sleep(0.7)
                    else:
                        end_backends(engine)
                load.until_sold_more(20)
            load.verify()
    heard = Counter(asked.heard[0].code for asked in load.asked_once)
    assert heard["OK"]
    assert heard["UNAVAILABLE"]


LOCK = text("SELECT FROM phone_number WHERE number = ANY(:numbers) ORDER BY number FOR UPDATE")


def end_backends(engine):
    """Of the server, all at once."""
    with engine.connect() as connection:
        connection.execute(
            text("""
                SELECT pg_terminate_backend(pid)
                FROM pg_stat_activity
                WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
            """)
        )


@pytest.fixture
def replicating(open_path, monkeypatch):
    """A PostgreSQL that can be told to wait for a standby."""
    for name, value in {"wal_level": "replica", "max_wal_senders": "1"}.items():
        monkeypatch.setitem(postgres.SETTINGS, name, value)
    with EmbeddedPostgres(open_path / "database") as replicating:
        migrations.upgrade(admin_engine(replicating.url()))
        yield replicating


def test_a_standby_that_does_not_answer(replicating, open_path):
    """Its COMMIT is written, and waits. Nobody is told of it before the standby has it; then everybody who asks is."""
    engine = admin_engine(replicating.url())
    customer = Customer.open(engine)
    (number,) = customer.numbers(1)
    settings = local_settings(open_path / ".data", database_url=replicating.url(), rest_deadline_ms=2000)
    with Up(settings, open_path, "--no-demo") as up, httpx.Client(base_url=up.rest_url, timeout=20) as client:
        up.until_ready()
        set_standby(engine, "nobody")
        asked = {"numbers": [number], "idempotency_key": "k"}
        answers = [Rest(client)(customer.key, **asked) for _ in range(3)]
        assert {answer.status for answer in answers} <= {504, 409}
        assert answers[0].status == 504
        assert {answer.body["error"]["code"] for answer in answers} <= {"TIMEOUT", "IDEMPOTENCY_IN_PROGRESS"}
        set_standby(engine, "")
        wait_until(customer.owned)
        told = Rest(client)(customer.key, **asked)
    assert (told.status, told.headers["idempotency-replayed"]) == (200, "true")
    assert {UUID(row["id"]) for row in told.body["data"]} == customer.assignment_ids()


def set_standby(engine, name):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'"))
        connection.execute(text("SELECT pg_reload_conf()"))
