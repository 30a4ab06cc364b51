"""What the tests run on: a real PostgreSQL for each pytest worker, databases on it, and the whole service."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from sqlalchemy import Engine

from server.config import Settings
from server.run.embedded.postgres import LOG_FILE, EmbeddedPostgres
from server.store import migrations
from server.store.check import violations
from server.store.engine import admin_engine
from tests.support.stack import Up, local_settings

TEMPLATE = "migrated"


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the full form of tests that repeat something many times")


@pytest.fixture
def times(request):
    """How often to repeat something: `times(short, full)`."""
    return lambda short, full: full if request.config.getoption("--full") else short


_count = itertools.count()


@dataclass(frozen=True)
class Database:
    """A migrated database without any rows."""

    url: str
    engine: Engine

    @classmethod
    def at(cls, url: str) -> "Database":
        return cls(url, admin_engine(url))

    def check(self) -> None:
        """Fail unless every invariant holds."""
        assert violations(self.engine) == []


@dataclass(frozen=True)
class Service:
    """Workers and Envoy on a database that the tests share: each makes organizations and numbers of its own there."""

    settings: Settings
    database: Database
    up: Up
    postgres_log: Path

    @property
    def rest_url(self) -> str:
        return f"http://{self.edge_target}"

    @property
    def edge_target(self) -> str:
        return f"127.0.0.1:{self.settings.rest_port}"

    @property
    def grpc_targets(self) -> list[str]:
        """The workers themselves, past Envoy."""
        return [f"127.0.0.1:{port}" for port in self.settings.grpc_ports]

    def logs(self) -> str:
        """What every process has logged so far."""
        return self.up.logs + self.postgres_log.read_text()


@contextmanager
def open_folder() -> Iterator[Path]:
    """Unlike pytest's own, one that PostgreSQL's user can enter when we are root."""
    with TemporaryDirectory(prefix="ordernumbers-test-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def open_path():
    with open_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def postgres_dir():
    with open_folder() as folder:
        yield folder / "data"


@pytest.fixture(scope="session")
def postgres(postgres_dir):
    with EmbeddedPostgres(postgres_dir, fsync=False) as postgres:
        _execute(postgres, f"CREATE DATABASE {TEMPLATE}")
        migrations.upgrade(admin_engine(postgres.url(TEMPLATE)))
        yield postgres


@pytest.fixture
def database(postgres):
    """A database of the test's own. Afterwards every invariant must hold."""
    name = _new_database(postgres)
    database = Database.at(postgres.url(name))
    yield database
    try:
        database.check()
    finally:
        _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def service(postgres, postgres_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    database = Database.at(postgres.url(_new_database(postgres)))
    settings = local_settings(folder / ".data", database_url=database.url)
    with Up(settings, folder, "--no-demo") as up:
        yield Service(settings, database, up.until_ready(), postgres_dir / LOG_FILE)


@pytest.fixture(autouse=True)
def _invariants_of_the_service(request):
    """After each test that used the service, every invariant must hold there."""
    yield
    if "service" in request.fixturenames:
        request.getfixturevalue("service").database.check()


def _new_database(postgres: EmbeddedPostgres) -> str:
    name = f"test_{next(_count)}"
    _execute(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    return name


def _execute(postgres: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(statement)
