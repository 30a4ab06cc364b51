"""The edge and the servers behind it: health, broken servers, trailers, retries, and the choice of a server."""

import socket
import threading
import time
from contextlib import ExitStack, closing, suppress

import grpc
import httpx
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import status_pb2
from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamEnded, TrailersReceived

from ordernumbers.v1.errors_pb2 import Error, ErrorResponse
from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_number_service_pb2_grpc import PhoneNumberServiceStub
from tests.support.callers import ROUTE, TIMEOUT_SECONDS, ULID, failure
from tests.support.edge import running_edge, running_server, sell, stat, wait_until_ready
from tests.support.rest import JSON, assert_clean, assert_not_cached_nor_guessed, assert_refused
from tests.support.stack import free_ports, local_settings, wait_until

pytestmark = pytest.mark.usefixtures("no_script_error")

# ---------------------------------------------------------------- health, and servers that are missing or broken


def test_healthz_is_200_while_a_server_serves(edge):
    for response in (edge.get("/healthz"), edge.head("/healthz")):
        assert (response.status_code, response.content) == (200, b"")
        assert_clean(response.headers)
        assert_not_cached_nor_guessed(response)
        assert ULID.fullmatch(response.headers["x-request-id"])
    other = edge.post("/healthz")
    assert_refused(other, 405)
    assert other.headers["allow"] == "GET, HEAD"
    assert_refused(edge.get("/healthz?x=1"), 400, {"x": "unknown parameter"})
    assert_refused(edge.get("/healthz", headers={"content-type": "application/grpc"}), 415)
    assert_refused(edge.get("/healthz", headers={"x-long": "x" * 17_000}), 431)
    assert edge.request("GET", "/healthz", content=b"x" * 100_000).status_code == 200


def test_a_call_is_503_when_no_server_runs(tmp_path):
    own = local_settings(tmp_path, workers=1)
    with running_edge(own), httpx.Client(base_url=f"http://127.0.0.1:{own.rest_port}") as client:
        assert_refused(client.get("/healthz"), 503)
        assert_refused(client.post(ROUTE, json={"numbers": []}), 503)
        assert_refused(client.post(ROUTE, content=b"x", headers=JSON), 400)
        assert (client.head("/healthz").status_code, client.head("/healthz").content) == (503, b"")
        with grpc.insecure_channel(f"127.0.0.1:{own.rest_port}") as channel:
            call = PhoneNumberServiceStub(channel).OrderNumbers.future(OrderNumbersRequest())
            assert call.code() == grpc.StatusCode.UNAVAILABLE
        assert stat(own, "http.edge.lua.errors") == 0


def crash(request, context):
    raise RuntimeError("secret")


def hang(request, context):
    time.sleep(1)


def abort_without_details(request, context):
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "secret")


def abort_after_headers(request, context):
    context.send_initial_metadata([("x-early", "1")])
    context.abort(grpc.StatusCode.DATA_LOSS, "secret")


def sell_with_long_label(request, context):
    response = sell(request, context)
    response.data[0].label = "x" * 3_000_000
    return response


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [(crash, 500), (hang, 504), (abort_without_details, 400), (abort_after_headers, 500), (sell_with_long_label, 200)],
)
def test_the_error_of_a_broken_server_reveals_nothing_internal(tmp_path, behaviour, status):
    own = local_settings(tmp_path, rest_deadline_ms=500, workers=1)
    with running_server(own.grpc_port, behaviour), running_edge(own):
        wait_until_ready(own)
        response = httpx.post(f"http://127.0.0.1:{own.rest_port}{ROUTE}", json={"numbers": ["x"]})
        assert stat(own, "http.edge.lua.errors") == 0
    if status == 200:
        assert len(response.json()["data"][0]["label"]) == 3_000_000
    else:
        assert_refused(response, status)


ONLY_ENVOYS = [("x-envoy-local-status", "503"), ("x-envoy-local-method", "HEAD")]


def sell_with_envoys_headers(request, context):
    context.send_initial_metadata(ONLY_ENVOYS)
    return sell(request, context)


def crash_with_envoys_headers(request, context):
    context.set_trailing_metadata(ONLY_ENVOYS)
    raise RuntimeError("secret")


def test_the_response_of_a_server_does_not_pass_for_one_of_envoy(tmp_path):
    own = local_settings(tmp_path, workers=1)
    for behaviour, status in ((sell_with_envoys_headers, 200), (crash_with_envoys_headers, 500)):
        with running_server(own.grpc_port, behaviour), running_edge(own):
            wait_until_ready(own)
            response = httpx.post(f"http://127.0.0.1:{own.rest_port}{ROUTE}", json={"numbers": ["x"]})
        if status == 200:
            assert (response.status_code, response.json()["success"]) == (200, True)
            assert_clean(response.headers)
        else:
            assert_refused(response, status)


def refuse_after_headers(request, context):
    """Refuse as our server does, but after the headers. So everything is in the trailers."""
    context.send_initial_metadata([("x-early", "1")])
    request_id = dict(context.invocation_metadata())["x-request-id"]
    packed = Any()
    packed.Pack(ErrorResponse(error=Error(code="INSUFFICIENT_CREDIT", message="poor", request_id=request_id)))
    details = status_pb2.Status(code=9, message="poor", details=[packed]).SerializeToString()
    trailers = [("http-status", "402"), ("x-request-id", request_id), ("grpc-status-details-bin", details)]
    context.set_trailing_metadata(trailers)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "poor")


def sell_with_trailers(request, context):
    context.set_trailing_metadata([("http-status", "200"), ("x-request-id", "x"), ("x-other", "x")])
    return sell(request, context)


def trailers_over_http2(port):
    """Return the trailers of an order over REST. httpx does not show them."""
    connection = H2Connection()
    connection.initiate_connection()
    path = [(":method", "POST"), (":path", ROUTE), (":scheme", "http"), (":authority", "x")]
    connection.send_headers(1, [*path, *JSON.items()])
    connection.send_data(1, b"{}", end_stream=True)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as wire:
        events = []
        while not any(isinstance(event, StreamEnded) for event in events):
            wire.sendall(connection.data_to_send())
            events += connection.receive_data(wire.recv(65536))
    assert any(isinstance(event, ResponseReceived) for event in events)
    return [event for event in events if isinstance(event, TrailersReceived)]


def test_the_edge_removes_a_servers_trailers_over_rest_and_its_internal_ones_over_grpc(tmp_path):
    own = local_settings(tmp_path, workers=1)
    for behaviour, status in ((refuse_after_headers, 402), (sell_with_trailers, 200)):
        with running_server(own.grpc_port, behaviour), running_edge(own):
            wait_until_ready(own)
            response = httpx.post(f"http://127.0.0.1:{own.rest_port}{ROUTE}", json={})
            assert response.status_code == status
            assert_clean(response.headers)
            if status == 402:
                request_id = response.headers["x-request-id"]
                assert response.json() == failure("INSUFFICIENT_CREDIT", "poor", request_id)
            assert trailers_over_http2(own.rest_port) == []
            with grpc.insecure_channel(f"127.0.0.1:{own.rest_port}") as channel:
                call = PhoneNumberServiceStub(channel).OrderNumbers.future(OrderNumbersRequest())
                assert "http-status" not in dict(call.trailing_metadata())
                assert "x-request-id" in dict(call.trailing_metadata())


class GarblingRelay:
    """Relays connections to a server. After `garble` is set it sends bytes that are no HTTP/2 instead of responses."""

    def __init__(self, port, server_port):
        self.garble = threading.Event()
        self._server_port = server_port
        self._listening = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listening.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                threading.Thread(target=self._relay, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._relay, args=(server, client, True), daemon=True).start()

    def _relay(self, source, target, is_response):
        with suppress(OSError), source, target:
            while data := source.recv(65536):
                if is_response and self.garble.is_set():
                    target.sendall(b"x" * 100)
                    return
                target.sendall(data)


def test_an_order_whose_response_is_no_http_is_a_timeout(tmp_path):
    """The server has carried it out, so neither 500 nor 503 would be true."""
    own, server_port = local_settings(tmp_path, workers=1), free_ports(1)
    relay = GarblingRelay(own.grpc_port, server_port)

    def sell_unseen(request, context):
        relay.garble.set()
        return sell(request, context)

    with closing(relay), running_server(server_port, sell_unseen), running_edge(own):
        wait_until_ready(own)
        assert_refused(httpx.post(f"http://127.0.0.1:{own.rest_port}{ROUTE}", json={}), 504)
        relay.garble.clear()
        wait_until_ready(own)
        with grpc.insecure_channel(f"127.0.0.1:{own.rest_port}") as channel:
            call = PhoneNumberServiceStub(channel).OrderNumbers.future(OrderNumbersRequest())
            assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED


# ---------------------------------------------------------------- native gRPC through the same port


def test_a_client_cannot_make_the_edge_retry(tmp_path):
    own = local_settings(tmp_path, workers=1)
    calls = []

    def refuse(request, context):
        calls.append(request)
        context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    metadata = [("x-envoy-retry-on", "5xx"), ("x-envoy-retry-grpc-on", "unavailable"), ("x-envoy-max-retries", "3")]
    with running_server(own.grpc_port, refuse), running_edge(own):
        wait_until_ready(own)
        with grpc.insecure_channel(f"127.0.0.1:{own.rest_port}") as channel:
            order = PhoneNumberServiceStub(channel).OrderNumbers
            assert order.future(OrderNumbersRequest(), metadata=metadata).code() == grpc.StatusCode.UNAVAILABLE
        httpx.post(f"http://127.0.0.1:{own.rest_port}{ROUTE}", json={}, headers=dict(metadata))
    assert len(calls) == 2


def test_native_grpc_keeps_its_status_and_gets_the_id_of_the_edge(service, customer):
    sent = [("authorization", f"BEARER {customer.key}"), ("x-request-id", "mine"), ("x-envoy-retry-on", "5xx")]
    with grpc.insecure_channel(service.edge_target) as channel:
        order = PhoneNumberServiceStub(channel).OrderNumbers
        for numbers, code in ((customer.numbers(1), "OK"), ([], "INVALID_ARGUMENT")):
            call = order.future(OrderNumbersRequest(numbers=numbers), metadata=sent, timeout=TIMEOUT_SECONDS)
            assert call.code().name == code
            metadata_received = [*call.initial_metadata(), *call.trailing_metadata()]
            ids = {value for name, value in metadata_received if name == "x-request-id"}
            assert len(ids) == 1
            assert ULID.fullmatch(ids.pop())
            assert [name for name, _ in metadata_received if name.startswith(("http-status", "x-envoy-"))] == []


# ---------------------------------------------------------------- the choice of a server


def test_an_organizations_calls_go_to_one_server_and_to_another_when_that_one_stops(tmp_path):
    own = local_settings(tmp_path)
    called = []

    def server(port):
        def record_and_sell(request, context):
            called.append(port)
            return sell(request, context)

        return running_server(port, record_and_sell)

    def servers_of(tag, count):
        called.clear()
        for i in range(count):
            key = f"Bearer am_live_{tag:06}{i:038}"
            response = client.post(ROUTE, json={"numbers": []}, headers={"authorization": key})
            assert response.status_code == 200, response.text
        return set(called)

    with ExitStack() as first, ExitStack() as rest, running_edge(own):
        first.enter_context(server(own.grpc_ports[0]))
        rest.enter_context(server(own.grpc_ports[1]))
        wait_until(lambda: stat(own, "cluster.servers.membership_healthy") == 2)
        client = rest.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{own.rest_port}"))
        servers = [servers_of(tag, 8) for tag in range(20)]
        assert all(len(each) == 1 for each in servers)
        assert set.union(*servers) == set(own.grpc_ports)
        first.close()
        # It stops without a drain. Until Envoy has noticed, a call may find neither of its tries answered: 503.
        wait_until(lambda: stat(own, "cluster.servers.membership_healthy") == 1)
        assert [servers_of(tag, 2) for tag in range(20)] == [{own.grpc_ports[1]}] * 20
