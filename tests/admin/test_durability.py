"""What a crash may lose is reported, and what admin commands are told is committed is on disk."""

import psycopg
import pytest
from sqlalchemy import text

from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations
from server.store.check import durability
from server.store.engine import admin_engine
from tests.conftest import _execute, open_folder
from tests.support.stack import wait_until


@pytest.fixture(scope="module")
def durable():
    """A PostgreSQL as `ordernumbers up` runs it."""
    with open_folder() as folder, EmbeddedPostgres(folder / "data") as postgres:
        migrations.upgrade(admin_engine(postgres.url()))
        yield postgres


def test_a_database_that_keeps_what_it_acknowledges_is_in_order(durable, ordernumbers, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", durable.url())
    assert ordernumbers("check") == {"ok": True, "violations": []}
    assert ordernumbers.run("check") == (0, "All invariants hold.\n", "")


@pytest.mark.parametrize(
    ("setting", "finding"),
    [
        ("fsync", "a crash of the machine may lose acknowledged orders and damage the database"),
        ("full_page_writes", "a crash of the machine may damage the database"),
        (
            "synchronous_commit",
            "a crash may lose what was acknowledged by programs that do not turn it on for themselves",
        ),
    ],
)
def test_a_setting_that_may_lose_orders_is_found(durable, ordernumbers, monkeypatch, setting, finding):
    monkeypatch.setenv("DATABASE_URL", durable.url())
    _configure(durable, f"ALTER SYSTEM SET {setting} = off", setting, "off")
    sentence = f"the database's setting {setting} is off: {finding}"
    assert ordernumbers.run("check") == (1, f"{sentence}\n", "")
    _configure(durable, f"ALTER SYSTEM RESET {setting}", setting, "on")
    assert ordernumbers("check")["ok"] is True


def _configure(postgres, statement, setting, value):
    _execute(postgres, statement)
    _execute(postgres, "SELECT pg_reload_conf()")

    def is_set():
        with psycopg.connect(postgres.url()) as connection:
            return connection.execute(f"SHOW {setting}").fetchone() == (value,)

    wait_until(is_set)


def test_what_is_off_for_the_database_is_found_though_our_sessions_turn_it_on(durable):
    _execute(durable, "ALTER DATABASE ordernumbers SET synchronous_commit = off")
    engine = admin_engine(durable.url())
    with engine.connect() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
    (finding,) = durability(engine)
    assert finding.startswith("the database's setting synchronous_commit is off")
    _execute(durable, "ALTER DATABASE ordernumbers RESET synchronous_commit")
    assert durability(engine) == []
