"""Faults between server and PostgreSQL: cut connections, lost or late packets, a standby that does not respond.

Clients that send a write again learn whether it was carried out.
"""

import itertools
import random
import socket
import time
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from server.run.embedded import postgres
from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations
from server.store.engine import admin_engine
from server.store.hosts import HEAD_START_SECONDS
from tests.faults.life_workload import LifeWorkload
from tests.faults.workload import Workload
from tests.support.callers import Rest
from tests.support.customer import Customer
from tests.support.proxy import AFTER_COMMIT, BEFORE_BEGIN, BEFORE_COMMIT
from tests.support.stack import Up, local_settings, wait_until


async def cut(connection):
    connection.cut()


def test_no_write_is_lost_when_connections_are_cut_or_silent_or_slow(behind_proxy, proxy, engine, times):
    faults = times(10, 200)
    rng = random.Random(13)
    port = behind_proxy.settings.rest_port
    with (
        Workload(engine, port, numbers=1000 * faults) as workload,
        LifeWorkload(engine, port, numbers=500 * faults) as life,
    ):
        kinds = (
            BEFORE_COMMIT,
            AFTER_COMMIT,
            "late",
            AFTER_COMMIT,
            BEFORE_BEGIN,
            AFTER_COMMIT,
            BEFORE_COMMIT,
            "silent",
        )
        for _, kind in zip(range(faults), itertools.cycle(kinds)):
            workload.wait_for_orders(5)
            life.wait_for_writes(5)
            if kind == "silent":
                proxy.swallow(True)
                time.sleep(rng.uniform(0.5, 6))  # shorter and longer than a transaction may take
                proxy.swallow(False)
            elif kind == "late":
                proxy.delay_seconds = 0.2
                workload.wait_for_orders(20)
                proxy.delay_seconds = 0
            else:
                assert proxy.arm(kind, cut).wait(30), f"no order came to {kind}"
    workload.verify()
    life.verify()


def test_orders_sent_once_get_the_right_response_while_the_first_host_is_silent(proxy, engine, open_path, times):
    """A new connection waits for the silent host, for longer than some callers wait."""
    impatient = 0.8 * HEAD_START_SECONDS
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
            with Workload(engine, settings.rest_port, numbers=40_000, deadlines=(impatient, 4.0)) as workload:
                for fault in range(times(6, 100)):
                    workload.wait_for_orders(20)
                    if fault % 3 == 0:
                        with engine.begin() as connection:
                            connection.execute(LOCK, {"numbers": workload.next_numbers(40)})
                            time.sleep(0.7)
                    else:
                        end_backends(engine)
                wait_until(lambda: end_backends(engine) or codes(workload) >= {"OK", "UNAVAILABLE"})
                workload.wait_for_orders(20)
            workload.verify()


def codes(workload):
    """The codes of the orders that were sent once, so far."""
    return {sent.outcomes[0].code for sent in [*workload.sent_once] if sent.outcomes}


LOCK = text("SELECT FROM phone_number WHERE number = ANY(:numbers) ORDER BY number FOR UPDATE")


def end_backends(engine):
    """End all connections of the server at once."""
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
    """A PostgreSQL that `set_standby` can make wait for a standby."""
    for name, value in {"wal_level": "replica", "max_wal_senders": "1"}.items():
        monkeypatch.setitem(postgres.SETTINGS, name, value)
    with EmbeddedPostgres(open_path / "database") as replicating:
        migrations.upgrade(admin_engine(replicating.url()))
        yield replicating


def test_an_order_is_acknowledged_only_after_the_standby_has_its_commit(replicating, open_path):
    engine = admin_engine(replicating.url())
    customer = Customer.open(engine)
    (number,) = customer.numbers(1)
    settings = local_settings(open_path / ".data", database_url=replicating.url(), rest_deadline_ms=2000)
    with Up(settings, open_path, "--no-demo") as up, httpx.Client(base_url=up.rest_url, timeout=20) as client:
        up.until_ready()
        set_standby(engine, "missing")  # a COMMIT is written, and waits for a standby that does not exist
        order = {"numbers": [number], "idempotency_key": "k"}
        responses = [Rest(client)(customer.key, **order) for _ in range(3)]
        assert {response.status for response in responses} <= {504, 409}
        assert responses[0].status == 504
        assert {response.body["error"]["code"] for response in responses} <= {"TIMEOUT", "IDEMPOTENCY_IN_PROGRESS"}
        set_standby(engine, "")
        wait_until(customer.owned)
        last = Rest(client)(customer.key, **order)
    assert (last.status, last.headers["idempotency-replayed"]) == (200, "true")
    assert {UUID(row["id"]) for row in last.body["data"]} == customer.assignment_ids()


def set_standby(engine, name):
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'"))
        connection.execute(text("SELECT pg_reload_conf()"))
