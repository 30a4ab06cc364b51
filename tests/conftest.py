"""What the tests run on: a real PostgreSQL for each pytest worker, databases on it, and the whole service."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from server.config import Settings
from server.run.embedded.postgres import LOG_FILE, EmbeddedPostgres
from tests.support.databases import Database, create_template, drop_database, new_database, open_folder
from tests.support.stack import Up, local_settings


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="the full form of tests that repeat something many times")


@pytest.fixture
def times(request):
    """How often to repeat something: `times(short, full)`."""
    return lambda short, full: full if request.config.getoption("--full") else short


@dataclass(frozen=True)
class Service:
    """Workers and Envoy on a database that tests share. Each test makes its own organizations and numbers there."""

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
        """The workers' own ports, without Envoy."""
        return [f"127.0.0.1:{port}" for port in self.settings.grpc_ports]

    def logs(self) -> str:
        """Everything that the processes have logged so far."""
        return self.up.logs + self.postgres_log.read_text()


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
        create_template(postgres)
        yield postgres


@pytest.fixture
def database(postgres):
    """A database for one test. Every invariant must hold when the test ends."""
    name = new_database(postgres)
    database = Database.at(postgres.url(name))
    yield database
    try:
        database.check()
    finally:
        drop_database(postgres, name)


@pytest.fixture(scope="session")
def started_service(postgres, postgres_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    database = Database.at(postgres.url(new_database(postgres)))
    settings = local_settings(folder / ".data", database_url=database.url)
    with Up(settings, folder, "--no-demo") as up:
        yield Service(settings, database, up.until_ready(), postgres_dir / LOG_FILE)


@pytest.fixture(scope="module")
def service(started_service):
    """Every invariant must hold when a module's tests end. The check takes a second once there are many orders."""
    yield started_service
    started_service.database.check()
