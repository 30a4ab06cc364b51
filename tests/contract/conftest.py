"""The three ways to make a call, and organizations to call for."""

import grpc
import httpx
import pytest

from tests.support.callers import TIMEOUT_SECONDS, Grpc, Rest
from tests.support.customer import Customer
from tests.support.edge import stat
from tests.support.openapi import assert_as_documented

AS_DOCUMENTED = {"response": [assert_as_documented]}
"""Every response is one that openapi.json has."""


@pytest.fixture
def customer(service):
    return Customer.open(service.database.engine)


@pytest.fixture
def other_customer(service):
    return Customer.open(service.database.engine)


@pytest.fixture
def rest(service):
    with httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS, event_hooks=AS_DOCUMENTED) as client:
        yield Rest(client)


@pytest.fixture
def grpc_direct_call(service):
    with grpc.insecure_channel(service.grpc_targets[0]) as channel:
        yield Grpc(channel)


@pytest.fixture
def grpc_edge_call(service):
    with grpc.insecure_channel(service.edge_target) as channel:
        yield Grpc(channel)


@pytest.fixture(params=["rest", "grpc_direct_call", "grpc_edge_call"], ids=["REST", "gRPC", "gRPC at the edge"])
def call(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=["HTTP/1.1", "HTTP/2"])
def edge(service, request):
    """A client of the edge over REST, once per version of HTTP."""
    http2 = request.param == "HTTP/2"
    versions = {"http1": not http2, "http2": http2}
    with httpx.Client(
        base_url=service.rest_url, **versions, timeout=TIMEOUT_SECONDS, event_hooks=AS_DOCUMENTED
    ) as client:
        yield client


@pytest.fixture(scope="module")
def no_script_error(service):
    """At the end of a module no Lua script has failed. Envoy lets a request through when a script fails on it."""
    yield
    assert stat(service.settings, "http.edge.lua.errors") == 0
