"""Envoys for one test, in front of servers that misbehave on purpose, or in front of no server."""

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ordernumbers.v1.orders_pb2 import OrderNumbersRequest, OrderNumbersResponse
from ordernumbers.v1.phone_number_service_pb2 import DESCRIPTOR
from ordernumbers.v1.phone_numbers_pb2 import PhoneNumber
from server.config import Settings
from server.run import edge
from server.run.edge import envoy_command, is_ready, write_config
from server.run.envoy_admin import ask
from tests.support.stack import wait_until

SERVICE = DESCRIPTOR.services_by_name["PhoneNumberService"]
START_SECONDS_MAX = 20


def unchanged(config: dict[str, Any]) -> None:
    """A change of nothing."""


@contextmanager
def running_edge(
    settings: Settings, change: Callable[[dict[str, Any]], None] = unchanged
) -> Iterator[subprocess.Popen]:
    """An Envoy that listens, after a change of its configuration. Its logs are in its data folder."""
    path = write_config(settings)
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    command = [*envoy_command(settings, path), "--concurrency", "1"]
    log_path = settings.data_dir / "envoy.log"
    with (
        (settings.data_dir / "access.log").open("wb") as access_log,
        log_path.open("wb") as log,
        subprocess.Popen(command, stdout=access_log, stderr=log) as envoy,
    ):
        try:
            wait_until(
                lambda: asyncio.run(edge.listens(settings)),
                seconds_max=START_SECONDS_MAX,
                is_hopeless=lambda: envoy.poll() is not None,
                report=log_path.read_text,
            )
            yield envoy
        finally:
            envoy.kill()


def wait_until_ready(settings: Settings) -> None:
    wait_until(lambda: asyncio.run(is_ready(settings)), seconds_max=START_SECONDS_MAX)


def access_log(settings: Settings, count: int) -> list[dict]:
    """Wait for `count` lines of the access log, and return all that are there."""
    path = settings.data_dir / "access.log"
    # Envoy writes a line after it has sent the response.
    wait_until(lambda: path.read_text().count("\n") >= count, seconds_max=START_SECONDS_MAX)
    return [json.loads(line) for line in path.read_text().splitlines()]


def stat(settings: Settings, name: str) -> int:
    """The value of one of Envoy's counters or gauges. There must be one of that name."""
    # Envoy's threads add up their counters every few seconds, and when they are asked for.
    stats = json.loads(ask(settings, "GET", f"/stats?format=json&filter=^{name}$"))["stats"]
    (found,) = [each["value"] for each in stats if "name" in each]
    return found


@contextmanager
def running_server(port: int, behaviour, host: str = "127.0.0.1") -> Iterator[None]:
    """A gRPC server that is SERVING. Each of its methods returns `behaviour(request, context)`."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            behaviour,
            GetMessageClass(method.input_type).FromString,
            GetMessageClass(method.output_type).SerializeToString,
        )
        for method in SERVICE.methods
    }
    healthy = health.HealthServicer()
    healthy.set(SERVICE.full_name, health_pb2.HealthCheckResponse.SERVING)
    with ThreadPoolExecutor(8) as threads:
        # Without this option two servers could share a port by mistake.
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)])
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        server.add_insecure_port(f"{host}:{port}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


def sell(request: OrderNumbersRequest, context: grpc.ServicerContext) -> OrderNumbersResponse:
    """The behaviour of a server that places every order."""
    return OrderNumbersResponse(success=True, data=[PhoneNumber(number=number) for number in request.numbers])
