"""The three ways to make a call, and organizations to make it for."""

import grpc
import httpx
import pytest

from tests.support.callers import TIMEOUT_SECONDS, Grpc, Rest
from tests.support.customer import Customer


@pytest.fixture
def customer(service):
    return Customer.open(service.database.engine)


@pytest.fixture
def other_customer(service):
    return Customer.open(service.database.engine)


@pytest.fixture
def rest(service):
    with httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client:
        yield Rest(client)


@pytest.fixture
def grpc_direct_call(service):
    with grpc.insecure_channel(service.grpc_targets[0]) as channel:
        yield Grpc(channel)


@pytest.fixture
def grpc_edge_call(service):
    with grpc.insecure_channel(service.edge_target) as channel:
        yield Grpc(channel)


@pytest.fixture(params=["rest", "grpc_direct_call", "grpc_edge_call"])
def call(request):
    return request.getfixturevalue(request.param)
