"""SIGKILL of anything at any time, under load: what was answered is kept, and clients that send again find out."""

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
from tests.faults.conftest import is_envoy, is_postgres, is_worker, kill
from tests.faults.proxy import POINTS
from tests.faults.workload import Workload
from tests.support.stack import Up, gone, local_settings, wait_until

KILLS_PER_SECOND_MAX = 0.7


def owner_of(port, processes):
    """Whose connection has this port on its side."""
    for process in processes:
        try:
            if any(connection.laddr.port == port for connection in process.net_connections("tcp")):
                return process
        except psutil.NoSuchProcess:
            continue
    raise AssertionError("a connection of nobody")


def test_workers_killed_at_any_moment_and_at_the_worst_ones(behind_proxy, proxy, engine, workers, times):
    kills = times(20, 400)
    chance = random.Random(11)

    async def kill_owner(connection):
        kill(owner_of(connection.client_port, workers()))
        connection.cut()

    with Workload(engine, behind_proxy.settings.rest_port, numbers=1000 * kills) as load:
        for _, point in zip(range(kills), itertools.cycle([None, *POINTS])):
            load.until_sold_more(5)
            if point:
                assert proxy.arm(point, kill_owner).wait(30), f"no order came to {point}"
            else:
                kill(chance.choice(workers()))
            time.sleep(chance.uniform(0, 2 / KILLS_PER_SECOND_MAX - 1))
    load.verify()
    wait_until(lambda: len(workers()) == behind_proxy.settings.workers)


@pytest.mark.parametrize(("victim", "short", "full"), [(is_postgres, 3, 50), (is_envoy, 2, 20)])
def test_postgresql_or_envoy_killed(open_path, times, victim, short, full):
    """All its processes at once; `ordernumbers up` starts it again."""
    kills = times(short, full)
    settings = local_settings(open_path / ".data")
    with Up(settings, open_path, "--no-demo") as up:
        up.until_ready()
        engine = admin_engine(url_of_running(settings.data_dir))
        with Workload(engine, settings.rest_port, numbers=10_000 * (1 + kills // 5)) as load:
            for _ in range(kills):
                load.until_sold_more(20)
                kill(*filter(victim, up.processes()))
            load.until_sold_more(20)
        load.verify()
        assert up.logs.count("ended by itself") >= kills


def test_workers_replaced_under_load_fail_nobody(open_path, durable_postgres, engine, times):
    """A rolling restart: not one answer is a failure, not one order has to be sent again."""
    restarts = times(2, 20)
    settings = local_settings(open_path / ".data", database_url=durable_postgres.url(), drain_ms=2500)
    with (
        Up(settings, open_path / "serve", command="serve") as serve,
        Up(settings, open_path / "edge", command="edge"),
    ):
        wait_until(lambda: asyncio.run(is_ready(settings)))
        old = [process for process in serve.processes() if is_worker(process)]
        with Workload(engine, settings.rest_port, numbers=20_000 * restarts) as load:
            for done in range(restarts):
                load.until_sold_more(20)
                serve.process.send_signal(signal.SIGHUP)
                wait_until(lambda done=done: serve.logs.count("every worker is a new one") == done + 1)
        assert gone(old)
        assert len([process for process in serve.processes() if is_worker(process)]) == len(old) == 2
    load.verify()
    assert {heard.code for asked in load.asked for heard in asked.heard} <= {"OK", "INSUFFICIENT_INVENTORY"}
