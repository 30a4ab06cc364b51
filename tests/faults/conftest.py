"""A whole service for a test to break: PostgreSQL as durable as in earnest, workers and Envoy, clients at work."""

from contextlib import suppress

import psutil
import pytest

from server.run.embedded.postgres import LOG_FILE, EmbeddedPostgres
from server.store import migrations
from server.store.engine import admin_engine
from tests.faults.proxy import Proxy
from tests.support.stack import Up, local_settings


def is_worker(process):
    return "server.run.worker" in command_of(process)


def is_envoy(process):
    return "envoy" in command_of(process).split(" ")[0]


def is_postgres(process):
    return "postgres" in command_of(process).split(" ")[0]


def command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # ended, perhaps not yet buried
        return ""


def kill(*processes):
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


@pytest.fixture
def durable_postgres(open_path):
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
    """Those that run now."""
    return lambda: [process for process in behind_proxy.processes() if is_worker(process)]
