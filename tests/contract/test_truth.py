"""Calls over gRPC that are not as they should be: each is told a true status, through the edge as by a server, and
nothing is sold."""

import json
import socket
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import pytest

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from server.errors import ERRORS, Code
from tests.contract.edges import stat
from tests.support.callers import METHOD, TIMEOUT_SECONDS, failure
from tests.support.stack import Up, local_settings
from tests.support.wire import Heard, Wire, framed, grpc_headers


class Case(NamedTuple):
    """What differs from a proper call, and the code it is told; None for a method that does not exist."""

    code: Code | None
    headers: dict[str, str | bytes | None] = {}  # noqa: RUF012
    body: bytes | None = b"the order"
    gives_up: bool = False
    """gRPC's own server ends it by a reset, which a client's library calls INTERNAL, before it is ours to answer."""


CASES = {
    "17 KB of headers": Case(Code.HEADERS_TOO_LARGE, {"x-long": "x" * 17_000}),
    "70 KB of headers": Case(Code.HEADERS_TOO_LARGE, {"x-long": "x" * 70_000}),
    "110 headers": Case(Code.HEADERS_TOO_LARGE, {f"x-{i}": "x" for i in range(110)}),
    "GET": Case(Code.METHOD_NOT_ALLOWED, {":method": "GET"}, gives_up=True),
    "GET without a body": Case(Code.METHOD_NOT_ALLOWED, {":method": "GET"}, None, gives_up=True),
    "PUT": Case(Code.METHOD_NOT_ALLOWED, {":method": "PUT"}, gives_up=True),
    "no te": Case(Code.INVALID_INPUT, {"te": None}, gives_up=True),
    "an escaped slash": Case(None, {":path": METHOD.replace("/OrderNumbers", "%2fOrderNumbers")}),
    "an unknown method": Case(None, {":path": METHOD + "s"}),
    "an unknown service": Case(None, {":path": "/x.Y/Z"}),
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
    """A port that takes calls, and whether it is the edge's."""

    port: int
    is_edge: bool


@pytest.fixture(params=["direct", "edge"])
def target(request, service):
    is_edge = request.param == "edge"
    return Target(service.settings.rest_port if is_edge else service.settings.grpc_port, is_edge)


@pytest.fixture(autouse=True, scope="module")
def no_script_error(service):
    yield
    assert stat(service.settings, "http.edge.lua.errors") == 0


def order(customer):
    return framed(OrderNumbersRequest(numbers=customer.numbers(1)).SerializeToString())


def assert_told(heard: Heard, grpc_status: str, message: str):
    told = heard.headers.get("grpc-status"), heard.headers.get("grpc-message")
    assert told == (str(getattr(grpc.StatusCode, grpc_status).value[0]), message)
    assert (heard.headers[":status"], heard.headers["content-type"]) == ("200", "application/grpc")


@pytest.mark.parametrize("name", CASES)
def test_it_is_told_the_truth(target, customer, name):
    case = CASES[name]
    with Wire(target.port) as wire:
        stream = wire.begin(grpc_headers(target.port, customer.key, case.headers), ends=case.body is None)
        wire.send(stream, (order(customer) if case.body == b"the order" else case.body or b""), ends=True)
        heard = wire.heard(stream)
    if case.gives_up and not target.is_edge:
        assert heard == Heard(is_reset=True, has_ended=True)
    elif case.code:
        assert_told(heard, ERRORS[case.code].grpc_status, ERRORS[case.code].message)
    else:
        assert heard.headers["grpc-status"] == str(grpc.StatusCode.UNIMPLEMENTED.value[0])
    assert customer.owned() == set()


@pytest.mark.parametrize("metadata", [{"with_underscore": "x"}, {"x-long": "x" * 15_000}])
def test_metadata_that_grpc_allows_does_no_harm(target, customer, metadata):
    request = OrderNumbersRequest(numbers=customer.numbers(1)).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        sent = [("authorization", f"Bearer {customer.key}"), *metadata.items()]
        channel.unary_unary(METHOD)(request, metadata=sent, timeout=TIMEOUT_SECONDS)
    assert len(customer.owned()) == 1


def test_trailers_of_a_request_do_no_harm(target, customer):
    with Wire(target.port) as wire:
        stream = wire.begin(grpc_headers(target.port, customer.key, {}))
        wire.send(stream, order(customer), ends=False)
        wire.end(stream, [("x-trailer", "x")])
        assert wire.heard(stream).headers["grpc-status"] == "0"


# ---------------------------------------------------------------- a message that does not come


@pytest.fixture(scope="module")
def impatient(service, tmp_path_factory):
    """The same service, but with a deadline of a second."""
    folder = tmp_path_factory.mktemp("impatient")
    url = service.database.url
    settings = local_settings(folder / ".data", database_url=url, workers=1, deadline_max_ms=1000)
    with Up(settings, folder, "--no-demo") as up:
        yield up.until_ready().settings


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\0\x09ab"], ids=["nothing", "a part"])
@pytest.mark.parametrize("port", ["grpc_port", "rest_port"], ids=["direct", "edge"])
def test_a_message_that_does_not_come_ends_its_call(impatient, customer, port, sent):
    port = getattr(impatient, port)
    with Wire(port) as wire:
        stream = wire.begin(grpc_headers(port, customer.key, {}))
        wire.send(stream, sent, ends=False)
        assert_told(wire.heard(stream), "DEADLINE_EXCEEDED", ERRORS[Code.REQUEST_TIMEOUT].message)
        after = wire.begin(grpc_headers(port, customer.key, {}))
        wire.send(after, order(customer), ends=True)
        assert wire.heard(after).headers["grpc-status"] == "0"


# ---------------------------------------------------------------- not gRPC's HTTP, or not proper HTTP


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_grpc_over_http1_is_refused_before_anything_is_sold(service, customer, method):
    """Envoy drops trailers there, and with them the status of an order that was carried out."""
    body = order(customer)
    head = (
        f"{method} {METHOD} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\nte: trailers\r\n"
        f"authorization: Bearer {customer.key}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.settings.rest_port), timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(head.encode() + body)
        head, _, said = b"".join(iter(lambda: connection.recv(65536), b"")).decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    message = ERRORS[Code.UPGRADE_REQUIRED].message
    assert status == "HTTP/1.1 426 Upgrade Required"
    assert (headers["grpc-status"], headers["grpc-message"]) == ("12", message)
    assert json.loads(said) == failure("UPGRADE_REQUIRED", message, headers["x-request-id"])
    assert customer.owned() == set()


IMPROPER = [
    {"x-nul": "a\0b"}, {"te": "gzip"}, {"X-Upper": "x"}, {"connection": "close"}, {"x-control": "\1"}, {"x-cr": "a\rb"},
    {":authority": None}, {":path": None},
]  # fmt: skip


@pytest.mark.parametrize("improper", IMPROPER, ids=repr)
def test_a_malformed_request_fails_no_other_on_its_connection(service, customer, improper):
    """RFC 9113, 8.1.1: a stream error."""
    port = service.settings.rest_port
    with Wire(port) as wire:
        before = wire.begin(grpc_headers(port, customer.key, {}))
        malformed = wire.begin(grpc_headers(port, customer.key, improper), ends=True)
        after = wire.begin(grpc_headers(port, customer.key, {}))
        assert wire.heard(malformed) == Heard(is_reset=True, has_ended=True)
        for stream in (before, after):
            wire.send(stream, order(customer), ends=True)
            assert wire.heard(stream).headers["grpc-status"] == "0"


def test_a_host_that_is_not_the_authority_is_refused(service, customer):
    """RFC 9113, 8.3.1. (Two Host headers of HTTP/1.1: with the other improper requests.)"""
    port = service.settings.rest_port
    headers = {":path": "/v1/phone-numbers/orders", "content-type": "application/json", "te": None}
    with Wire(port) as wire:
        stream = wire.begin(grpc_headers(port, customer.key, headers | {"host": "other.example"}))
        wire.send(stream, b'{"numbers": ["+14155550100"]}', ends=True)
        heard = wire.heard(stream)
    assert (heard.headers[":status"], json.loads(heard.data)["error"]["code"]) == ("400", "INVALID_INPUT")
