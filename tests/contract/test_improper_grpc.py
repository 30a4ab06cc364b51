"""gRPC calls that are wrong in some way. The edge and a server return the right status, and sell nothing."""

import json
import socket
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import pytest

from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from server.errors import ERRORS, Code
from tests.support.callers import METHOD, RPCS, SERVICE, TIMEOUT_SECONDS, failure
from tests.support.edge import stat
from tests.support.stack import Up, local_settings
from tests.support.wire import StreamResponse, Wire, framed, grpc_headers


class Case(NamedTuple):
    """How a call differs from a valid one, and the code that it gets. No code is for an unknown method."""

    code: Code | None
    headers: dict[str, str | bytes | None] = {}  # noqa: RUF012
    body: bytes | None = b"the order"
    grpcio_resets: bool = False
    """Whether grpcio resets the stream before our code sees the call. A client library reports that as INTERNAL."""


CASES = {
    "17 KB of headers": Case(Code.HEADERS_TOO_LARGE, {"x-long": "x" * 17_000}),
    "70 KB of headers": Case(Code.HEADERS_TOO_LARGE, {"x-long": "x" * 70_000}),
    "110 headers": Case(Code.HEADERS_TOO_LARGE, {f"x-{i}": "x" for i in range(110)}),
    "GET": Case(Code.METHOD_NOT_ALLOWED, {":method": "GET"}, grpcio_resets=True),
    "GET without a body": Case(Code.METHOD_NOT_ALLOWED, {":method": "GET"}, None, grpcio_resets=True),
    "PUT": Case(Code.METHOD_NOT_ALLOWED, {":method": "PUT"}, grpcio_resets=True),
    "no te": Case(Code.INVALID_INPUT, {"te": None}, grpcio_resets=True),
    "an escaped slash": Case(None, {":path": METHOD.replace("/OrderNumbers", "%2fOrderNumbers")}),
    "an unknown method": Case(None, {":path": METHOD + "s"}),
    "an unknown service": Case(None, {":path": "/x.Y/Z"}),
    "an unknown path like those of REST": Case(None, {":path": "/v1/x"}),
    "a byte that is not UTF-8": Case(Code.INVALID_INPUT, {"x-other": b"\xa0"}),
    "a key that is not UTF-8": Case(Code.INVALID_INPUT, {"authorization": b"Bearer am_live_x\xa0"}),
    "text that is not ASCII": Case(Code.INVALID_INPUT, {"x-other": "é".encode()}),
    "a tab": Case(Code.INVALID_INPUT, {"x-other": "a\tb"}),
    "one byte too long": Case(Code.PAYLOAD_TOO_LARGE, body=framed(b"x" * (65536 - 4))),
    "twice too long": Case(Code.PAYLOAD_TOO_LARGE, body=framed(b"x" * 131072)),
    "a megabyte": Case(Code.PAYLOAD_TOO_LARGE, body=framed(b"x" * 2**20)),
    "no message": Case(Code.INVALID_INPUT, body=None),
    "half a message": Case(Code.INVALID_INPUT, body=b"\0\0\0\0\x09ab"),
}


@dataclass
class Target:
    """A port for calls, and whether it is the edge's."""

    port: int
    is_edge: bool


@pytest.fixture(params=["direct", "edge"])
def target(request, service):
    is_edge = request.param == "edge"
    return Target(service.settings.rest_port if is_edge else service.settings.grpc_port, is_edge)


@pytest.fixture(autouse=True, scope="module")
def no_script_error(service):
    yield
    # Envoy lets a request through when a script fails on it.
    assert stat(service.settings, "http.edge.lua.errors") == 0


def order_message(customer):
    return framed(OrderNumbersRequest(numbers=customer.numbers(1)).SerializeToString())


def assert_status(response: StreamResponse, grpc_status: str, message: str):
    status = response.headers.get("grpc-status"), response.headers.get("grpc-message")
    assert status == (str(getattr(grpc.StatusCode, grpc_status).value[0]), message)
    assert (response.headers[":status"], response.headers["content-type"]) == ("200", "application/grpc")


def response_to(case, target, customer):
    with Wire(target.port) as wire:
        stream = wire.start(grpc_headers(target.port, customer.key, case.headers), ends=case.body is None)
        wire.send(stream, (order_message(customer) if case.body == b"the order" else case.body or b""), ends=True)
        return wire.response(stream)


@pytest.mark.parametrize("name", CASES)
def test_an_improper_call_gets_the_right_status(target, customer, name):
    case = CASES[name]
    response = response_to(case, target, customer)
    if case.grpcio_resets and not target.is_edge:
        assert response == StreamResponse(is_reset=True, has_ended=True)
    elif case.code:
        assert_status(response, ERRORS[case.code].grpc_status, ERRORS[case.code].message)
    else:
        assert response.headers["grpc-status"] == str(grpc.StatusCode.UNIMPLEMENTED.value[0])
    assert customer.owned() == set()


@pytest.mark.parametrize("rpc", RPCS)
def test_an_improper_call_gets_the_same_status_from_every_method(target, customer, rpc):
    path = {":path": f"/{SERVICE.full_name}/{rpc}"}
    for name in ("110 headers", "a tab", "one byte too long", "no message", "half a message"):
        case = CASES[name]
        response = response_to(case._replace(headers=case.headers | path), target, customer)
        assert_status(response, ERRORS[case.code].grpc_status, ERRORS[case.code].message)


@pytest.mark.parametrize("metadata", [{"with_underscore": "x"}, {"x-long": "x" * 15_000}], ids=["underscore", "15 KB"])
def test_metadata_that_grpc_allows_is_accepted(target, customer, metadata):
    request = OrderNumbersRequest(numbers=customer.numbers(1)).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        sent = [("authorization", f"Bearer {customer.key}"), *metadata.items()]
        channel.unary_unary(METHOD)(request, metadata=sent, timeout=TIMEOUT_SECONDS)
    assert len(customer.owned()) == 1


def test_a_request_with_trailers_is_accepted(target, customer):
    with Wire(target.port) as wire:
        stream = wire.start(grpc_headers(target.port, customer.key, {}))
        wire.send(stream, order_message(customer), ends=False)
        wire.end(stream, [("x-trailer", "x")])
        assert wire.response(stream).headers["grpc-status"] == "0"


# ---------------------------------------------------------------- a message that does not arrive


@pytest.fixture(scope="module")
def impatient(service, tmp_path_factory):
    """Settings of the same service with a deadline of one second."""
    folder = tmp_path_factory.mktemp("impatient")
    url = service.database.url
    settings = local_settings(folder / ".data", database_url=url, workers=1, deadline_max_ms=1000)
    with Up(settings, folder, "--no-demo") as up:
        yield up.until_ready().settings


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\0\x09ab"], ids=["nothing", "a part"])
@pytest.mark.parametrize("port", ["grpc_port", "rest_port"], ids=["direct", "edge"])
def test_a_call_whose_message_does_not_arrive_ends_at_the_deadline(impatient, customer, port, sent):
    port = getattr(impatient, port)
    with Wire(port) as wire:
        stream = wire.start(grpc_headers(port, customer.key, {}))
        wire.send(stream, sent, ends=False)
        assert_status(wire.response(stream), "DEADLINE_EXCEEDED", ERRORS[Code.REQUEST_TIMEOUT].message)
        after = wire.start(grpc_headers(port, customer.key, {}))
        wire.send(after, order_message(customer), ends=True)
        assert wire.response(after).headers["grpc-status"] == "0"


# ---------------------------------------------------------------- HTTP/1.1, and invalid HTTP/2


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_grpc_over_http1_is_refused_before_anything_is_sold(service, customer, method):
    """Envoy drops trailers there, and with them the status of an order that was placed."""
    message_bytes = order_message(customer)
    head = (
        f"{method} {METHOD} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\nte: trailers\r\n"
        f"authorization: Bearer {customer.key}\r\ncontent-length: {len(message_bytes)}\r\nconnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.settings.rest_port), timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(head.encode() + message_bytes)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    message = ERRORS[Code.UPGRADE_REQUIRED].message
    assert status == "HTTP/1.1 426 Upgrade Required"
    assert (headers["grpc-status"], headers["grpc-message"]) == ("12", message)
    assert json.loads(body) == failure("UPGRADE_REQUIRED", message, headers["x-request-id"])
    assert customer.owned() == set()


IMPROPER = [
    {"x-nul": "a\0b"}, {"te": "gzip"}, {"X-Upper": "x"}, {"connection": "close"}, {"x-control": "\1"}, {"x-cr": "a\rb"},
    {":authority": None}, {":path": None},
]  # fmt: skip


@pytest.mark.parametrize("improper", IMPROPER, ids=repr)
def test_a_malformed_request_does_not_end_other_calls_on_its_connection(service, customer, improper):
    """RFC 9113, 8.1.1: a malformed request is a stream error."""
    port = service.settings.rest_port
    with Wire(port) as wire:
        before = wire.start(grpc_headers(port, customer.key, {}))
        malformed = wire.start(grpc_headers(port, customer.key, improper), ends=True)
        after = wire.start(grpc_headers(port, customer.key, {}))
        assert wire.response(malformed) == StreamResponse(is_reset=True, has_ended=True)
        for stream in (before, after):
            wire.send(stream, order_message(customer), ends=True)
            assert wire.response(stream).headers["grpc-status"] == "0"


def test_a_host_header_that_differs_from_the_authority_is_refused(service, customer):
    """RFC 9113, 8.3.1. The tests of REST have the case of two Host headers over HTTP/1.1."""
    port = service.settings.rest_port
    headers = {":path": "/v1/phone-numbers/orders", "content-type": "application/json", "te": None}
    with Wire(port) as wire:
        stream = wire.start(grpc_headers(port, customer.key, headers | {"host": "other.example"}))
        wire.send(stream, b'{"numbers": ["+14155550100"]}', ends=True)
        response = wire.response(stream)
    assert (response.headers[":status"], json.loads(response.data)["error"]["code"]) == ("400", "INVALID_INPUT")
