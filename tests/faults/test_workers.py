"""`ordernumbers serve` behind `ordernumbers edge`: workers end and are replaced."""

import asyncio
import os
import signal
import socket
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.run.edge import is_ready
from tests.support.background_orders import BackgroundOrders
from tests.support.customer import Customer
from tests.support.edge import stat
from tests.support.stack import Up, gone, is_worker, local_settings, wait_until
from tests.support.wire import Wire, grpc_headers


@pytest.fixture
def settings(open_path, database):
    return local_settings(open_path / ".data", database_url=database.url, drain_ms=2500)


@pytest.fixture
def serve(settings, open_path):
    with Up(settings, open_path / "serve", command="serve") as serve:
        serve.until_logged("serving on")
        yield serve


@pytest.fixture
def edge(settings, open_path, serve):
    with Up(settings, open_path / "edge", command="edge") as edge:
        wait_until(lambda: asyncio.run(is_ready(settings)))
        yield edge


def workers(serve):
    return [process for process in serve.process.children() if is_worker(process)]


def test_no_call_that_reached_a_worker_fails_when_serve_is_stopped(serve, edge, database):
    with BackgroundOrders(edge.rest_url, Customer.open(database.engine), numbers=30_000) as orders:
        wait_until(lambda: len(orders.sold) > 50)
        processes = serve.processes()
        assert serve.stop() == 0
        assert gone(processes)
        orders.enough.set()
    # Envoy itself sends the 503, after the health check has reported that the workers drain.
    others = [response for response in orders.refused if isinstance(response, BaseException) or response.status != 503]
    assert others == []


def test_a_frozen_worker_gets_no_calls_until_it_goes_on(serve, edge, settings):
    def are_healthy(count):
        wait_until(lambda: stat(settings, "cluster.servers.membership_healthy") == count)

    are_healthy(2)
    frozen = workers(serve)[0]
    os.kill(frozen.pid, signal.SIGSTOP)
    are_healthy(1)
    os.kill(frozen.pid, signal.SIGCONT)
    are_healthy(2)


def test_a_worker_that_ends_is_replaced(serve, settings):
    (first, second) = workers(serve)
    first.kill()
    wait_until(lambda: {first.pid, second.pid} < {first.pid, *(p.pid for p in workers(serve))})
    assert "exited with status -9, restarting it" in serve.logs


def test_a_worker_whose_grpc_server_ended_is_replaced_and_logs_no_secret(serve, settings):
    """A path that is not UTF-8 ends grpcio's server. Envoy escapes such paths, so only a direct caller can send one."""
    with Wire(settings.grpc_port) as wire:
        wire.response(wire.start(grpc_headers(settings.grpc_port, "x", {":path": b"/am_live_secret\xa0"}), ends=True))
    serve.until_logged("exited with status 0, restarting it")
    wait_until(lambda: is_serving(f"127.0.0.1:{settings.grpc_port}"))
    assert "secret" not in serve.logs


def is_serving(target):
    with grpc.insecure_channel(target) as channel, suppress(grpc.RpcError):
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return response.status == health_pb2.HealthCheckResponse.SERVING


def test_workers_end_when_their_parent_is_killed(serve):
    processes = serve.processes()
    assert len(processes) == 3
    serve.process.kill()
    wait_until(lambda: gone(processes))


def test_a_frozen_worker_is_killed_after_the_drain(settings, open_path):
    with Up(settings.model_copy(update={"drain_ms": 0, "deadline_max_ms": 500}), open_path, command="serve") as serve:
        serve.until_logged("serving on")
        frozen = workers(serve)[0]
        os.kill(frozen.pid, signal.SIGSTOP)
        assert serve.stop() == 0
        assert gone([frozen])
        assert "worker 0 did not drain in" in serve.logs


@pytest.mark.parametrize("ports", ["grpc_ports", "metrics_ports"])
def test_a_port_in_use_stops_serve_with_the_reason(settings, open_path, ports):
    port = getattr(settings, ports)[1]
    with socket.create_server(("127.0.0.1", port)):
        serve = Up(settings, open_path, command="serve")
        assert serve.until_ended() == 1
    reason = f"ordernumbers: worker 1 cannot start: port {port} of 127.0.0.1 is in use\n"
    assert reason in serve.logs
    assert "Traceback" not in serve.logs
    assert "restarting it" not in serve.logs
