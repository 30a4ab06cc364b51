"""The service on a durable PostgreSQL, with a proxy between them that a test can use to break it."""

import pytest

from server.run.embedded.postgres import LOG_FILE, EmbeddedPostgres
from server.store import migrations
from server.store.engine import admin_engine
from tests.support.proxy import Proxy
from tests.support.stack import Up, is_worker, local_settings


@pytest.fixture
def durable_postgres(open_path):
    """A PostgreSQL with fsync, so that a commit survives SIGKILL."""
    with EmbeddedPostgres(open_path / "database") as postgres:
        migrations.upgrade(admin_engine(postgres.url()))
        yield postgres
    log = (open_path / "database" / LOG_FILE).read_text()
    assert "PANIC" not in log


@pytest.fixture
def proxy(durable_postgres):
    with Proxy(durable_postgres.url()) as proxy:
        yield proxy


@pytest.fixture
def engine(durable_postgres):
    return admin_engine(durable_postgres.url())


@pytest.fixture
def behind_proxy(proxy, open_path):
    """Four workers and Envoy, on a database behind the proxy."""
    settings = local_settings(open_path / ".data", database_url=proxy.url, workers=4)
    with Up(settings, open_path, "--no-demo") as up:
        yield up.until_ready()


@pytest.fixture
def workers(behind_proxy):
    """A function that returns the workers that run now."""
    return lambda: [process for process in behind_proxy.processes() if is_worker(process)]
