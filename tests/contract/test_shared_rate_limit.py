"""A rate limit service that several edges share. Its protocol is that of envoyproxy/ratelimit."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from tests.support.callers import ROUTE, failure
from tests.support.edge import running_edge, running_server, sell, wait_until_ready
from tests.support.stack import free_ports, local_settings

METHOD = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
OK, OVER_LIMIT = 1, 2
SECRET = "s" * 38


def messages():
    """The messages of the service, as far as this test needs them: envoy/service/ratelimit/v3/rls.proto."""
    file = FileDescriptorProto(name="rls.proto", package="rls", syntax="proto3")
    string, message, repeated = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_MESSAGE, 3
    entry = file.message_type.add(name="Entry")
    entry.field.add(name="key", number=1, type=string, label=1)
    entry.field.add(name="value", number=2, type=string, label=1)
    descriptor = file.message_type.add(name="Descriptor")
    descriptor.field.add(name="entries", number=1, type=message, type_name=".rls.Entry", label=repeated)
    request = file.message_type.add(name="Request")
    request.field.add(name="domain", number=1, type=string, label=1)
    request.field.add(name="descriptors", number=2, type=message, type_name=".rls.Descriptor", label=repeated)
    response = file.message_type.add(name="Response")
    response.field.add(name="overall_code", number=1, type=FieldDescriptorProto.TYPE_INT32, label=1)
    pool = DescriptorPool()
    pool.Add(file)
    return (GetMessageClass(pool.FindMessageTypeByName(f"rls.{name}")) for name in ("Request", "Response"))


Request, Response = messages()


class RateLimitService:
    """Allows so many calls of each organization, and remembers everything that it was asked."""

    def __init__(self, port, limit):
        self.asked = []
        self._port, self._limit, self._counts = port, limit, Counter()

    def _should_rate_limit(self, request, _):
        self.asked.append(request)
        found = [(entry.key, entry.value) for each in request.descriptors for entry in each.entries]
        organizations = [value for key, value in found if key == "organization"]
        self._counts.update(organizations)
        is_over = any(self._counts[each] > self._limit for each in organizations)
        return Response(overall_code=OVER_LIMIT if is_over else OK)

    @contextmanager
    def running(self):
        handler = grpc.unary_unary_rpc_method_handler(
            self._should_rate_limit, Request.FromString, Response.SerializeToString
        )
        service, name = METHOD[1:].split("/")
        with ThreadPoolExecutor(4) as threads:
            server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])
            server.add_insecure_port(f"127.0.0.1:{self._port}")
            server.start()
            try:
                yield self
            finally:
                server.stop(None).wait()


@pytest.fixture
def port():
    return free_ports(1)


@contextmanager
def edge(folder, server_port, port):
    settings = local_settings(
        folder, workers=1, servers=f"127.0.0.1:{server_port}", rate_limit_service=f"127.0.0.1:{port}"
    )
    with running_edge(settings):
        wait_until_ready(settings)
        yield f"http://127.0.0.1:{settings.rest_port}"


def order(url, tag):
    return httpx.post(f"{url}{ROUTE}", json={"numbers": []}, headers={"authorization": f"Bearer am_live_{tag}{SECRET}"})


def test_two_edges_share_the_limits_of_the_service_and_tell_it_no_key(tmp_path, port):
    server_port = free_ports(1)
    with (
        RateLimitService(port, limit=6).running() as service,
        running_server(server_port, sell),
        edge(tmp_path / "one", server_port, port) as one,
        edge(tmp_path / "two", server_port, port) as two,
    ):
        statuses = [order(url, "aaaaaa").status_code for url in (one, two) * 5]
        assert statuses == [200] * 6 + [429] * 4
        refused = order(one, "aaaaaa")
        assert refused.json() == failure("RATE_LIMITED", "rate limited", refused.headers["x-request-id"])
        assert refused.headers["retry-after"] == "1"
        # Other organizations, another spelling of the scheme, and calls without a key.
        assert order(two, "bbbbbb").status_code == 200
        assert httpx.post(f"{one}{ROUTE}", json={"numbers": []}).status_code == 200
        for malformed in (
            f"am_live_{SECRET}",
            f"Token am_live_{SECRET}",
            f"Bearer am_live_ab-{SECRET}",
            f"Basic {SECRET}",
        ):
            httpx.post(f"{one}{ROUTE}", json={"numbers": []}, headers={"authorization": malformed})
        before = len(service.asked)
        assert httpx.get(f"{one}/healthz").status_code == 200
        assert len(service.asked) == before
    assert {request.domain for request in service.asked} == {"ordernumbers"}
    assert "127.0.0.1" in str(service.asked[0])
    assert "sssss" not in str(service.asked)


def test_without_the_service_calls_go_on(tmp_path, port):
    server_port = free_ports(1)
    with running_server(server_port, sell), edge(tmp_path, server_port, port) as url:
        assert [order(url, "aaaaaa").status_code for _ in range(3)] == [200] * 3
