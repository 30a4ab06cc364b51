"""The check reports settings that may lose commits in a crash. Admin commands wait until their commits are on disk."""

import psycopg
import pytest
from sqlalchemy import text

from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations
from server.store.check import durability
from server.store.engine import admin_engine
from tests.support.databases import execute, open_folder
from tests.support.stack import wait_until


@pytest.fixture(scope="module")
def durable():
    """A PostgreSQL as `ordernumbers up` runs it."""
    with open_folder() as folder, EmbeddedPostgres(folder / "data") as postgres:
        migrations.upgrade(admin_engine(postgres.url()))
        yield postgres


def test_a_database_with_safe_settings_has_no_findings(durable, ordernumbers, monkeypatch):
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
            "a crash may lose acknowledged commits of programs that do not turn it on themselves",
        ),
    ],
)
def test_an_unsafe_setting_is_found(durable, ordernumbers, monkeypatch, setting, finding):
    monkeypatch.setenv("DATABASE_URL", durable.url())
    _configure(durable, f"ALTER SYSTEM SET {setting} = off", setting, "off")
    sentence = f"the database setting {setting} is off: {finding}"
    assert ordernumbers.run("check") == (1, f"{sentence}\n", "")
    _configure(durable, f"ALTER SYSTEM RESET {setting}", setting, "on")
    assert ordernumbers("check")["ok"] is True


def _configure(postgres, statement, setting, value):
    execute(postgres, statement)
    execute(postgres, "SELECT pg_reload_conf()")

    def is_set():
        with psycopg.connect(postgres.url()) as connection:
            return connection.execute(f"SHOW {setting}").fetchone() == (value,)

    wait_until(is_set)


def test_an_unsafe_default_of_the_database_is_found_although_our_sessions_override_it(durable):
    execute(durable, "ALTER DATABASE ordernumbers SET synchronous_commit = off")
    engine = admin_engine(durable.url())
    with engine.connect() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == "on"
    (finding,) = durability(engine)
    assert finding.startswith("the database setting synchronous_commit is off")
    execute(durable, "ALTER DATABASE ordernumbers RESET synchronous_commit")
    assert durability(engine) == []
