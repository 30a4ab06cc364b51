"""An upgrade under load, as docs/upgrades.md describes it: first the schema, then the workers."""

import asyncio
import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from sqlalchemy import text

from server.run.edge import is_ready
from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations
from server.store.engine import admin_engine
from tests.faults.workload import Workload
from tests.support.callers import Grpc
from tests.support.customer import Customer
from tests.support.inventory import let_time_pass
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
            with beside_each_other(port, port + 2) as (on_old, on_new):
                assert_old_workers_respect_holds_and_rests(Customer.open(engine), Customer.open(engine), on_old, on_new)
            old.stop()
            workload.wait_for_orders(50)
        workload.verify()
    assert count_orders(engine, "number_count IS NULL") > 100
    assert "INTERNAL" not in {outcome.code for order in workload.sent for outcome in order.outcomes}


@contextmanager
def beside_each_other(*ports):
    """Calls to the workers on these ports."""
    with ExitStack() as opened:
        yield [Grpc(opened.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))) for port in ports]


def assert_old_workers_respect_holds_and_rests(a, b, on_old, on_new):
    """New workers hold and release numbers, which old workers sell and do not sell."""
    refused = (409, "INSUFFICIENT_INVENTORY")

    def order(call, customer, number, **options):
        response = call(customer.key, numbers=[number], **options)
        return (response.status, response.body["error"]["code"]) if response.status != 200 else response.body["data"]

    kept, sold, other = a.numbers(3)
    hold = on_new.rpc("HoldNumbers", a.key, numbers=[kept, sold]).body["data"]
    assert order(on_old, b, kept) == order(on_old, b, sold) == refused
    # An old worker sells a number that its buyer holds. The number has then left the hold.
    ((row,),) = [order(on_old, a, sold, idempotency_key="k")]
    assert on_new.rpc("GetHold", a.key, id=hold["id"]).body["data"]["numbers"] == [kept]
    assert on_new.rpc("ReleaseHold", a.key, id=hold["id"]).body["data"]["numbers"] == [kept]
    assert order(on_old, b, kept) != refused
    # A new worker finds, repeats and changes what an old one has sold.
    assert on_new.rpc("FindOrder", a.key, idempotency_key="k").body["data"] == [row]
    replayed = on_new(a.key, numbers=[sold], idempotency_key="k")
    assert (replayed.body["data"], replayed.headers["idempotency-replayed"]) == ([row], "true")
    assert on_new.rpc("UpdateNumber", a.key, id=row["id"], label="new").body["data"]["label"] == "new"
    # What rests is sold to its last owner only, also by an old worker.
    assert on_new.rpc("ReleaseNumber", a.key, id=row["id"]).status == 200
    assert order(on_old, b, sold) == refused
    ((again,),) = [order(on_old, a, sold)]
    assert on_new.rpc("GetNumber", a.key, id=again["id"]).body["data"] == again
    assert on_new.rpc("ReleaseNumber", a.key, id=again["id"]).status == 200
    assert on_new.rpc("HoldNumbers", a.key, numbers=[other]).status == 200
    let_time_pass(a, days=31)
    for number in (sold, other):
        assert order(on_old, b, number) != refused
    assert (a.owned(), b.owned()) == (set(), {kept, sold, other})


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
