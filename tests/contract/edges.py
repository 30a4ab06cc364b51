"""Envoys of a test's own: with servers that misbehave on purpose, or with none."""

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest, OrderNumbersResponse, PhoneNumber
from ordernumbers.v1.phone_number_service_pb2_grpc import (
    PhoneNumberServiceServicer,
    add_PhoneNumberServiceServicer_to_server,
)
from server.config import Settings
from server.run import edge
from server.run.edge import envoy_command, is_ready, write_config
from server.run.envoy_admin import ask

SERVICE = "ordernumbers.v1.PhoneNumberService"
START_SECONDS_MAX = 20


@contextmanager
def running_edge(settings: Settings) -> Iterator[subprocess.Popen]:
    """An Envoy that listens. Its logs are in its data folder."""
    command = [*envoy_command(settings, write_config(settings)), "--concurrency", "1"]
    with (
        (settings.data_dir / "access.log").open("wb") as access_log,
        (settings.data_dir / "envoy.log").open("wb") as log,
        subprocess.Popen(command, stdout=access_log, stderr=log) as envoy,
    ):
        try:
            wait_until(lambda: listens(settings, envoy))
            yield envoy
        finally:
            envoy.kill()


def listens(settings: Settings, envoy: subprocess.Popen) -> bool:
    assert envoy.poll() is None, (settings.data_dir / "envoy.log").read_text()
    return asyncio.run(edge.listens(settings))


def wait_until(happened) -> None:
    until = time.monotonic() + START_SECONDS_MAX
    while not happened():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def wait_until_ready(settings: Settings) -> None:
    wait_until(lambda: asyncio.run(is_ready(settings)))


def access_log(settings: Settings, count: int) -> list[dict]:
    """The lines of the access log, once there are so many: Envoy writes them behind the answers."""
    path = settings.data_dir / "access.log"
    wait_until(lambda: path.read_text().count("\n") >= count)
    return [json.loads(line) for line in path.read_text().splitlines()]


def stat(settings: Settings, name: str) -> int:
    """One of Envoy's counters, which its threads bring together every few seconds and on request."""
    stats = json.loads(ask(settings, "GET", f"/stats?format=json&filter=^{name}$"))["stats"]
    (found,) = [each["value"] for each in stats if "name" in each]
    return found


@contextmanager
def running_server(port: int, behaviour) -> Iterator[None]:
    """A gRPC server that is SERVING, whose OrderNumbers does what `behaviour(request, context)` does."""

    class Servicer(PhoneNumberServiceServicer):
        def OrderNumbers(self, request, context):  # noqa: N802
            return behaviour(request, context)

    healthy = health.HealthServicer()
    healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
        add_PhoneNumberServiceServicer_to_server(Servicer(), server)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


def sell(request: OrderNumbersRequest, context: grpc.ServicerContext) -> OrderNumbersResponse:
    """The behaviour of a good server."""
    return OrderNumbersResponse(success=True, data=[PhoneNumber(number=number) for number in request.numbers])
