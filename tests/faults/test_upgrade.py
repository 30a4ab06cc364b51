"""An upgrade under load (docs/upgrades.md): first the schema, beside the last release's workers, then the workers."""

import asyncio
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from server.run.edge import is_ready
from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations
from server.store.engine import admin_engine
from tests.faults.conftest import is_worker, kill
from tests.faults.workload import Workload
from tests.support.stack import COMMAND, Up, free_ports, local_settings, wait_until

ROOT = Path(__file__).parents[2]
LAST_RELEASE = "7ef7806acbbd30985a69848d00a15146795cdb1a"
"""What runs in production when this version comes: to be moved on with each release."""


@pytest.fixture
def last_release(open_path):
    """The program of then, in a folder; it is left out where the clone has no history."""
    folder = open_path / "last_release"
    folder.mkdir()
    archive = subprocess.run(["git", "archive", LAST_RELEASE], cwd=ROOT, capture_output=True, timeout=60, check=False)
    if archive.returncode:
        pytest.skip(f"the last release is not in this clone's history: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, timeout=60, check=True)
    return folder


@pytest.fixture
def postgres_of_then(open_path):
    with EmbeddedPostgres(open_path / "database") as postgres:
        yield postgres


def test_the_last_release_sells_beside_the_new_schema_and_the_new_workers(last_release, postgres_of_then, open_path):
    url, port = postgres_of_then.url(), free_ports(4)
    engine = admin_engine(url)
    in_it = of_then(last_release, url, port)
    subprocess.run([*in_it, COMMAND, "db", "upgrade"], timeout=60, check=True)
    assert migrations.current(engine) == "0002"
    at_all = local_settings(open_path / ".data", database_url=url, workers=4).model_copy(update={"grpc_port": port})
    at_new = at_all.model_copy(update={"workers": 2, "grpc_port": port + 2})
    with ExitStack() as running:
        then = running.enter_context(Up(at_new, open_path / "then", command="serve", by=in_it))
        running.enter_context(Up(at_all, open_path / "edge", command="edge"))
        wait_until(lambda: asyncio.run(is_ready(at_all)))
        with Workload(engine, at_all.rest_port, numbers=60_000) as clients:
            clients.until_sold_more(50)
            migrations.upgrade(engine)
            clients.until_sold_more(50)
            kill(next(process for process in then.processes() if is_worker(process)))  # its successor is of then, too
            clients.until_sold_more(50)
            running.enter_context(Up(at_new, open_path / "now", command="serve"))
            wait_until(lambda: orders(engine, "number_count IS NOT NULL") > 50)
            then.stop()
            clients.until_sold_more(50)
        clients.verify()
    assert orders(engine, "number_count IS NULL") > 100
    assert "INTERNAL" not in {heard.code for asked in clients.asked for heard in asked.heard}


def of_then(folder, url, port):
    """What to put before a command so that it is the last release's, with settings that it knows."""
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{folder}:{folder / 'gen'}",
        "DATABASE_URL": url,
        "ORDERNUMBERS_GRPC_PORT": port,
        "ORDERNUMBERS_WORKERS": 2,
        "ORDERNUMBERS_DRAIN_MS": 1000,
    }
    return [shutil.which("env"), "-i", *(f"{name}={value}" for name, value in settings.items())]


def orders(engine, which):
    with engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM orders WHERE {which}")).scalar_one()
