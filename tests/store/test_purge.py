"""Old answers are forgotten in steps, new ones and those at work on are not."""

import asyncio

import pytest
from sqlalchemy import text

from server.config import Settings
from server.store import idempotency
from server.store.idempotency import purge

HOUR_MS = 3_600_000
REMEMBER = text(
    "INSERT INTO idempotency_key SELECT :id, 'k' || i, '', :id, 'x', now() - :hours * interval '1 hour'"
    " FROM generate_series(1, :count) i"
)


@pytest.fixture
def remember(database, customer):
    """Answers so many hours old; afterwards none is left, since no order of theirs is there."""

    def insert(count, hours, of=customer):
        with database.engine.begin() as connection:
            connection.execute(REMEMBER, {"id": of.id, "hours": hours, "count": count})

    yield insert
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM idempotency_key"))


def run(database, **settings):
    return asyncio.run(purge(database.url, Settings(**settings)))


def left(database):
    with database.engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM idempotency_key")).scalar()


def test_what_is_older_than_a_day_is_forgotten(database, customer, remember):
    remember(3, 25)
    remember(2, 23, of=customer.poor())
    assert run(database) == 3
    assert left(database) == 2


def test_how_long_responses_are_kept_is_a_setting(database, remember):
    remember(3, 25)
    assert run(database, idempotency_ms=26 * HOUR_MS) == 0
    assert run(database, idempotency_ms=HOUR_MS) == 3


def test_it_goes_in_steps_to_the_end(database, remember, monkeypatch):
    monkeypatch.setattr(idempotency, "STEP_PAUSE_SECONDS", 0)
    remember(1201, 25)
    assert run(database) == 1201


def test_it_waits_for_nobody(database, remember):
    remember(3, 25)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM idempotency_key WHERE key = 'k1' FOR KEY SHARE"))
        assert run(database) == 2
    assert run(database) == 1
