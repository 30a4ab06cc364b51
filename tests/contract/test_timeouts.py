"""A database that does not respond: the caller gets TIMEOUT, and the order may have been placed."""

import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import text

from tests.support.callers import Grpc, failure
from tests.support.stack import wait_until

SERVERS = text(
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'ordernumbers' "
    "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def is_serving(target):
    with grpc.insecure_channel(target) as channel:
        response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return response.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def frozen(service):
    """Stop every backend that serves the workers. With `wholly` also the process that starts new ones."""

    @contextmanager
    def freeze(*, wholly=False):
        with service.database.engine.connect() as connection:
            pids = connection.execute(SERVERS).scalars().all()
            if wholly:  # the parent of all backends
                pids.append(psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar()).ppid())
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            wait_until(lambda: all(map(is_serving, service.grpc_targets)))
            wait_until(lambda: httpx.get(f"{service.rest_url}/healthz").is_success)

    return freeze


def test_an_order_that_is_under_way_at_its_deadline_is_a_timeout(call, customer, frozen):
    impatient = replace(call, timeout_seconds=2) if isinstance(call, Grpc) else call
    assert call(customer.key, numbers=customer.numbers(1)).status == 200  # caches the key and opens a connection
    numbers = customer.numbers(1)
    with frozen():
        response = impatient(customer.key, numbers=numbers)
    assert (response.status, response.body) == (504, failure("TIMEOUT", "request timed out", response.request_id))
    assert call(customer.key, numbers=numbers).status in (200, 409)


def test_an_order_with_a_later_deadline_is_placed_over_a_new_connection(grpc_direct_call, customer, frozen):
    assert grpc_direct_call(customer.key, numbers=customer.numbers(1)).status == 200
    numbers = customer.numbers(1)
    with frozen():
        assert grpc_direct_call(customer.key, numbers=numbers).status == 200
    assert customer.owned() >= set(numbers)


def test_an_order_is_unavailable_when_its_key_cannot_be_looked_up(call, customer, frozen):
    numbers = customer.numbers(1)
    with frozen(wholly=True):
        response = call(customer.key, numbers=numbers)
    assert (response.status, response.body) == (503, failure("UNAVAILABLE", "service unavailable", response.request_id))
    assert customer.owned() == set()
