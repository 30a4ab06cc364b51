"""`ordernumbers serve` behind `ordernumbers edge`: workers come and go, and no call is the worse for it."""

import asyncio
import os
import signal
import socket
from contextlib import suppress

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.run.edge import is_ready
from tests.support.customer import Customer
from tests.support.load import Load
from tests.support.stack import Up, gone, local_settings, wait_until
from tests.support.wire import Wire, grpc_headers


@pytest.fixture
def settings(open_path, database):
    return local_settings(open_path / ".data", database_url=database.url, drain_ms=2500)


@pytest.fixture
def serve(settings, open_path):
    with Up(settings, open_path / "serve", command="serve") as serve:
        wait_until(lambda: "serving on" in serve.logs)
        yield serve


@pytest.fixture
def edge(settings, open_path, serve):
    with Up(settings, open_path / "edge", command="edge") as edge:
        wait_until(lambda: asyncio.run(is_ready(settings)))
        yield edge


def workers(serve):
    return [p for p in serve.process.children() if is_worker(p)]


def is_worker(process):
    try:
        return "server.run.worker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # ended, perhaps not yet buried
        return False


def test_told_to_stop_it_serves_on_until_everyone_knows(serve, edge, database):
    """Envoy hears from the drain and answers 503 by itself: no call that reached a worker fails."""
    with Load(edge.rest_url, Customer.open(database.engine), numbers=30_000) as load:
        wait_until(lambda: len(load.sold) > 50)
        processes = serve.processes()
        assert serve.stop() == 0
        assert gone(processes)
        load.enough.set()
    answers = [answer for answer in load.refused if isinstance(answer, BaseException) or answer.status != 503]
    assert answers == []


def test_a_worker_that_ends_is_replaced(serve, settings):
    (first, second) = workers(serve)
    first.kill()
    wait_until(lambda: {first.pid, second.pid} < {first.pid, *(p.pid for p in workers(serve))})
    assert "ended by itself, with status -9; starting it again" in serve.logs


def test_a_worker_whose_grpc_has_ended_is_replaced_and_tells_no_secret(serve, settings):
    """One byte in a path that is not UTF-8 ends grpcio's server. Envoy escapes it. The workers' own ports are open."""
    with Wire(settings.grpc_port) as wire:
        wire.heard(wire.begin(grpc_headers(settings.grpc_port, "x", {":path": b"/am_live_secret\xa0"}), ends=True))
    wait_until(lambda: "ended by itself, with status 0; starting it again" in serve.logs)
    wait_until(lambda: is_serving(f"127.0.0.1:{settings.grpc_port}"))
    assert "secret" not in serve.logs


def is_serving(target):
    with grpc.insecure_channel(target) as channel, suppress(grpc.RpcError):
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return answer.status == health_pb2.HealthCheckResponse.SERVING


def test_workers_end_with_a_parent_that_is_killed(serve):
    processes = serve.processes()
    assert len(processes) == 3
    serve.process.kill()
    wait_until(lambda: gone(processes))


def test_a_frozen_worker_is_killed_in_the_end(settings, open_path):
    with Up(settings.model_copy(update={"drain_ms": 0, "deadline_max_ms": 500}), open_path, command="serve") as serve:
        wait_until(lambda: "serving on" in serve.logs)
        frozen = workers(serve)[0]
        os.kill(frozen.pid, signal.SIGSTOP)
        assert serve.stop() == 0
        assert gone([frozen])
        assert "worker 0 did not drain in" in serve.logs


def test_a_port_in_use_stops_the_parent_with_the_reason(settings, open_path):
    with socket.create_server(("127.0.0.1", settings.grpc_ports[1])):
        serve = Up(settings, open_path, command="serve")
        assert serve.until_ended() == 1
    reason = f"ordernumbers: worker 1 cannot start: port {settings.grpc_ports[1]} of 127.0.0.1 is in use\n"
    assert reason in serve.logs
    assert "Traceback" not in serve.logs
    assert "ended by itself" not in serve.logs
