"""An upgrade under load, as docs/upgrades.md describes it: first the schema, then the workers."""

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
from tests.faults.workload import Workload
from tests.support.stack import COMMAND, Up, free_ports, kill, local_settings, wait_until

ROOT = Path(__file__).parents[2]
LAST_RELEASE = "7ef7806acbbd30985a69848d00a15146795cdb1a"
"""The commit that runs in production before this version. Set it with each release."""
LAST_WORKER = "server.process"
"""The module of that release's workers."""


@pytest.fixture
def last_release(open_path):
    """A folder with the last release's code. The test is skipped in a clone without history."""
    folder = open_path / "last_release"
    folder.mkdir()
    archive = subprocess.run(["git", "archive", LAST_RELEASE], cwd=ROOT, capture_output=True, timeout=60, check=False)
    if archive.returncode:
        pytest.skip(f"the last release is not in this clone's history: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, timeout=60, check=True)
    return folder


@pytest.fixture
def empty_postgres(open_path):
    with EmbeddedPostgres(open_path / "database") as postgres:
        yield postgres


def test_workers_of_the_last_release_run_with_the_new_schema_and_beside_new_workers(
    last_release, empty_postgres, open_path
):
    url, port = empty_postgres.url(), free_ports(4)
    engine = admin_engine(url)
    with_last_release = environment_of_last_release(last_release, url, port)
    subprocess.run([*with_last_release, COMMAND, "db", "upgrade"], timeout=60, check=True)
    assert migrations.current(engine) == "0002"
    # The edge calls four workers. The first two ports are for old workers, the others for new ones.
    edge = local_settings(open_path / ".data", database_url=url, workers=4).model_copy(update={"grpc_port": port})
    new = edge.model_copy(update={"workers": 2, "grpc_port": port + 2})
    with ExitStack() as running:
        old = running.enter_context(Up(new, open_path / "old", command="serve", by=with_last_release))
        running.enter_context(Up(edge, open_path / "edge", command="edge"))
        wait_until(lambda: asyncio.run(is_ready(edge)))
        with Workload(engine, edge.rest_port, numbers=60_000) as workload:
            workload.wait_for_orders(50)
            migrations.upgrade(engine)
            workload.wait_for_orders(50)
            # A worker that is replaced starts with the new schema.
            kill(next(process for process in old.processes() if LAST_WORKER in process.cmdline()))
            workload.wait_for_orders(50)
            running.enter_context(Up(new, open_path / "new", command="serve"))
            wait_until(lambda: count_orders(engine, "number_count IS NOT NULL") > 50)
            old.stop()
            workload.wait_for_orders(50)
        workload.verify()
    assert count_orders(engine, "number_count IS NULL") > 100
    assert "INTERNAL" not in {outcome.code for order in workload.sent for outcome in order.outcomes}


def environment_of_last_release(folder, url, port):
    """The words before a command that make it run the last release's code."""
    # The names of its own settings: it refuses to start with an unknown one.
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{folder}:{folder / 'gen'}",
        "DATABASE_URL": url,
        "ORDERNUMBERS_GRPC_PORT": port,
        "ORDERNUMBERS_WORKERS": 2,
        "ORDERNUMBERS_DRAIN_SECONDS": 1,
    }
    return [shutil.which("env"), "-i", *(f"{name}={value}" for name, value in settings.items())]


def count_orders(engine, condition):
    with engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM orders WHERE {condition}")).scalar_one()
