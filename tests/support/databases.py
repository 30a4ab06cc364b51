"""Databases for tests: each has the newest schema and no rows."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
from sqlalchemy import Engine

from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations
from server.store.check import violations
from server.store.engine import admin_engine

TEMPLATE = "migrated"
_count = itertools.count()


@dataclass(frozen=True)
class Database:
    """A migrated database."""

    url: str
    engine: Engine

    @classmethod
    def at(cls, url: str) -> "Database":
        return cls(url, admin_engine(url))

    def check(self) -> None:
        """Fail unless every invariant holds."""
        found = violations(self.engine)
        assert not found, "\n".join(found)


def create_template(postgres: EmbeddedPostgres) -> None:
    """Migrate the database that `new_database` copies."""
    execute(postgres, f"CREATE DATABASE {TEMPLATE}")
    migrations.upgrade(admin_engine(postgres.url(TEMPLATE)))


def new_database(postgres: EmbeddedPostgres) -> str:
    """Create a migrated database, and return its name."""
    name = f"test_{next(_count)}"
    # A copy takes a fraction of the time that the migrations take.
    execute(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    return name


def drop_database(postgres: EmbeddedPostgres, name: str) -> None:
    execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def execute(postgres: EmbeddedPostgres, statement: str) -> None:
    """Run a statement that belongs to no database, outside a transaction."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(statement)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that PostgreSQL can use."""
    with TemporaryDirectory(prefix="ordernumbers-test-") as folder:
        # Under root PostgreSQL runs as another user, who cannot enter pytest's own folders.
        Path(folder).chmod(0o711)
        yield Path(folder)
