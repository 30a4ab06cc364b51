"""The purge deletes old stored responses in steps. It skips new ones, and those that another transaction has locked."""

import asyncio

import pytest
from sqlalchemy import text

from server import metrics
from server.config import Settings
from server.rpc import server
from server.store import idempotency
from server.store.idempotency import purge
from tests.support.stack import free_ports, wait_until

HOUR_MS = 3_600_000
STORE_RESPONSES = text(
    "INSERT INTO idempotency_key SELECT :id, 'k' || i, '', :id, 'x', now() - :hours * interval '1 hour'"
    " FROM generate_series(1, :count) i"
)


@pytest.fixture
def store_responses(database, customer):
    """Store responses with an age in hours."""

    def store(count, hours, of=customer):
        with database.engine.begin() as connection:
            connection.execute(STORE_RESPONSES, {"id": of.id, "hours": hours, "count": count})

    yield store
    # They have no orders, which the check after the test would report.
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM idempotency_key"))


def run(database, **settings):
    return asyncio.run(purge(database.url, Settings(**settings)))


def test_a_worker_counts_what_it_purges(database, store_responses, monkeypatch):
    store_responses(3, 25)
    monkeypatch.setattr(server, "PURGE_INTERVAL_SECONDS", 0.05)
    settings = Settings(grpc_port=free_ports(1), workers=1, drain_ms=0)
    before = metrics.PURGED.value, metrics.PURGES["ok",].value

    async def work():
        worker = await server.Server.start(settings, database.url, settings.grpc_port)
        await asyncio.to_thread(wait_until, lambda: metrics.PURGES["ok",].value >= before[1] + 2)
        await worker.drain()

    asyncio.run(work())
    assert metrics.PURGED.value == before[0] + 3
    assert count_stored(database) == 0


def count_stored(database):
    with database.engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM idempotency_key")).scalar()


def test_responses_older_than_a_day_are_deleted(database, customer, store_responses):
    store_responses(3, 25)
    store_responses(2, 23, of=customer.poor())
    assert run(database) == 3
    assert count_stored(database) == 2


def test_the_age_limit_is_a_setting(database, store_responses):
    store_responses(3, 25)
    assert run(database, idempotency_ms=26 * HOUR_MS) == 0
    assert run(database, idempotency_ms=24 * HOUR_MS) == 3


def test_the_purge_deletes_in_steps_until_nothing_old_is_left(database, store_responses, monkeypatch):
    monkeypatch.setattr(idempotency, "STEP_PAUSE_SECONDS", 0)
    store_responses(1201, 25)
    assert run(database) == 1201


def test_the_purge_skips_locked_rows(database, store_responses):
    store_responses(3, 25)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM idempotency_key WHERE key = 'k1' FOR KEY SHARE"))
        assert run(database) == 2
    assert run(database) == 1


def test_responses_may_be_kept_for_a_year(database, store_responses):
    # PostgreSQL 14 has no intervals of so many milliseconds.
    store_responses(3, 25)
    assert run(database, idempotency_ms=365 * 24 * HOUR_MS) == 0


def test_the_purge_goes_on_after_a_conflict(database, store_responses, fail_clock):
    store_responses(3, 25)
    fail_clock(3)
    assert run(database) == 3
