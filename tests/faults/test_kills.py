"""SIGKILL of any process at any time, under load: no acknowledged write is lost, and clients can send writes again."""

import asyncio
import itertools
import random
import signal
import time

import psutil
import pytest

from server.run.edge import is_ready
from server.run.embedded.postgres import url_of_running
from server.store.engine import admin_engine
from tests.faults.life_workload import LifeWorkload
from tests.faults.workload import Workload
from tests.support.proxy import POINTS
from tests.support.stack import (
    Up,
    gone,
    is_envoy,
    is_postgres,
    is_worker,
    kill,
    local_settings,
    wait_until,
)

KILLS_PER_SECOND_MAX = 0.7


def owner_of(port, processes):
    """The process that has a connection from this port."""
    for process in processes:
        try:
            if any(connection.laddr.port == port for connection in process.net_connections("tcp")):
                return process
        except psutil.NoSuchProcess:
            continue
    raise AssertionError(f"no process has a connection from port {port}")


def test_no_write_is_lost_when_workers_are_killed_at_random_and_around_commit(
    behind_proxy, proxy, engine, workers, times
):
    kills = times(20, 400)
    rng = random.Random(11)

    async def kill_owner(connection):
        kill(owner_of(connection.client_port, workers()))
        connection.cut()

    port = behind_proxy.settings.rest_port
    with (
        Workload(engine, port, numbers=1000 * kills) as workload,
        LifeWorkload(engine, port, numbers=500 * kills) as life,
    ):
        for _, point in zip(range(kills), itertools.cycle([None, *POINTS])):
            workload.wait_for_orders(5)
            life.wait_for_writes(5)
            if point:
                assert proxy.arm(point, kill_owner).wait(30), f"no order came to {point}"
            else:
                kill(rng.choice(workers()))
            time.sleep(rng.uniform(0, 2 / KILLS_PER_SECOND_MAX - 1))
    workload.verify()
    life.verify()
    wait_until(lambda: len(workers()) == behind_proxy.settings.workers)


@pytest.mark.parametrize(
    ("victim", "short", "full"), [(is_postgres, 3, 50), (is_envoy, 2, 20)], ids=["PostgreSQL", "Envoy"]
)
def test_no_write_is_lost_when_postgresql_or_envoy_is_killed(open_path, times, victim, short, full):
    """All its processes are killed at once, and `ordernumbers up` starts it again."""
    kills = times(short, full)
    settings = local_settings(open_path / ".data")
    with Up(settings, open_path, "--no-demo") as up:
        up.until_ready()
        engine = admin_engine(url_of_running(settings.data_dir))
        with (
            Workload(engine, settings.rest_port, numbers=10_000 * (1 + kills // 5)) as workload,
            LifeWorkload(engine, settings.rest_port, numbers=5_000 * (1 + kills // 5)) as life,
        ):
            for _ in range(kills):
                workload.wait_for_orders(20)
                life.wait_for_writes(20)
                kill(*filter(victim, up.processes()))
            workload.wait_for_orders(20)
            life.wait_for_writes(20)
        workload.verify()
        life.verify()
        assert up.logs.count("restarting it") >= kills


def test_no_call_fails_when_workers_are_replaced(open_path, durable_postgres, engine, times):
    """A rolling restart under load. No call has to be sent again."""
    restarts = times(2, 20)
    settings = local_settings(open_path / ".data", database_url=durable_postgres.url(), drain_ms=2500)
    with (
        Up(settings, open_path / "serve", command="serve") as serve,
        Up(settings, open_path / "edge", command="edge"),
    ):
        wait_until(lambda: asyncio.run(is_ready(settings)))
        old = [process for process in serve.processes() if is_worker(process)]
        with (
            Workload(engine, settings.rest_port, numbers=20_000 * restarts) as workload,
            LifeWorkload(engine, settings.rest_port, numbers=10_000 * restarts) as life,
        ):
            for done in range(restarts):
                workload.wait_for_orders(20)
                life.wait_for_writes(20)
                serve.process.send_signal(signal.SIGHUP)
                wait_until(lambda done=done: serve.logs.count("all workers are replaced") == done + 1)
        assert gone(old)
        assert len([process for process in serve.processes() if is_worker(process)]) == len(old) == 2
    workload.verify()
    life.verify()
    assert {reply.code for write in life.sent for reply in write.replies} == {"OK"}
    assert {outcome.code for order in workload.sent for outcome in order.outcomes} <= {"OK", "INSUFFICIENT_INVENTORY"}
