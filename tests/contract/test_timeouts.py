"""When the database stands still: TIMEOUT, on either transport, and the order may have been carried out."""

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
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def frozen(service):
    """Stops every backend that serves the workers; wholly, also what makes new ones, as a machine that stands still."""

    @contextmanager
    def freeze(*, wholly=False):
        with service.database.engine.connect() as connection:
            pids = connection.execute(SERVERS).scalars().all()
            if wholly:
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


def test_an_order_under_way_when_time_is_up_is_a_timeout(call, customer, frozen):
    impatient = replace(call, timeout_seconds=2) if isinstance(call, Grpc) else call
    assert call(customer.key, numbers=customer.numbers(1)).status == 200  # its key is known and a connection open
    numbers = customer.numbers(1)
    with frozen():
        answer = impatient(customer.key, numbers=numbers)
    assert (answer.status, answer.body) == (504, failure("TIMEOUT", "request timed out", answer.request_id))
    assert call(customer.key, numbers=numbers).status in (200, 409)


def test_who_waits_longer_is_served_over_another_connection(grpc_direct_call, customer, frozen):
    assert grpc_direct_call(customer.key, numbers=customer.numbers(1)).status == 200
    numbers = customer.numbers(1)
    with frozen():
        assert grpc_direct_call(customer.key, numbers=numbers).status == 200
    assert customer.owned() >= set(numbers)


def test_a_key_that_cannot_be_looked_up_is_not_refused_but_unavailable(call, customer, frozen):
    numbers = customer.numbers(1)
    with frozen(wholly=True):
        answer = call(customer.key, numbers=numbers)
    assert (answer.status, answer.body) == (503, failure("UNAVAILABLE", "service unavailable", answer.request_id))
    assert customer.owned() == set()
