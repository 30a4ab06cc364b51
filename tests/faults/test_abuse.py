"""Clients that attack: each is refused, and another client is served at the same time."""

import resource
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import grpc
import h2.config
import h2.connection
import h2.errors
import httpx
import psutil
import pytest

from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from server.config import REQUEST_BODY_BYTES_MAX
from tests.support.callers import METHOD, ROUTE, TIMEOUT_SECONDS, Grpc, Rest
from tests.support.customer import Customer
from tests.support.edge import running_edge, running_server, sell, wait_until_ready
from tests.support.stack import is_envoy, is_worker, local_settings, wait_until

SLOW_CLIENTS = 50
GROWTH_BYTES_MAX = 32 * 2**20


@pytest.fixture
def customer(service):
    return Customer.open(service.database.engine)


@pytest.fixture(params=["edge", "worker"])
def port(request, service):
    return service.settings.rest_port if request.param == "edge" else service.settings.grpc_port


@pytest.fixture
def well_behaved(service, customer):
    """Orders of another client, over REST and gRPC, during the whole test. Yields their statuses.

    Every order must be placed, and the processes must not grow.
    """
    statuses, enough = [], threading.Event()

    def send_orders():
        with (
            httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client,
            grpc.insecure_channel(service.grpc_targets[0]) as channel,
        ):
            while not enough.is_set():
                for call in (Rest(client), Grpc(channel)):
                    statuses.append(call(customer.key, numbers=customer.numbers(1)).status)
                enough.wait(0.02)

    processes = [p for p in service.up.processes() if is_worker(p) or is_envoy(p)]
    before = sum(process.memory_info().rss for process in processes)
    thread = threading.Thread(target=send_orders)
    thread.start()
    yield statuses
    served = len(statuses)
    wait_until(lambda: len(statuses) > served or not thread.is_alive())
    enough.set()
    thread.join()
    assert set(statuses) == {200}
    assert sum(process.memory_info().rss for process in processes) - before < GROWTH_BYTES_MAX


# ---------------------------------------------------------------- too large


@pytest.mark.parametrize("size", [REQUEST_BODY_BYTES_MAX + 1, 2**20, 4 * 2**20 - 100])
def test_an_oversized_message_is_refused(service, customer, well_behaved, size):
    for target in (service.grpc_targets[0], service.edge_target):
        raw = OrderNumbersRequest(label="x" * size).SerializeToString()
        with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(METHOD)(raw, metadata=[("authorization", f"Bearer {customer.key}")], timeout=20)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_oversized_metadata_is_refused(service, customer, well_behaved, size):
    for target in (service.grpc_targets[0], service.edge_target):
        metadata = [("authorization", f"Bearer {customer.key}"), ("x-long", "x" * size)]
        with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(METHOD)(b"", metadata=metadata, timeout=20)
        assert refused.value.code() not in (
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.OK,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )


# ---------------------------------------------------------------- too slow


def test_slow_bodies_delay_no_other_client(service, customer, well_behaved, times):
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {customer.key}\r\n"
        "content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    )
    slow = [socket.create_connection(("127.0.0.1", service.settings.rest_port)) for _ in range(SLOW_CLIENTS)]
    try:
        for connection in slow:
            connection.sendall(head.encode())
        for _ in range(times(20, 120)):
            for connection in slow:
                with suppress(OSError):
                    connection.send(b" ")
            time.sleep(0.1)
        if times(False, True):  # the short form ends before the time limit of 10 seconds
            for connection in slow:
                assert connection.recv(12) == b"HTTP/1.1 408"
    finally:
        for connection in slow:
            connection.close()


# ---------------------------------------------------------------- too many connections, too much memory


@contextmanager
def served_edge(folder, **limits):
    """An edge with such limits, and a client that sends orders on one connection.

    Yields the edge's settings, its process, and the statuses that the client receives.
    """
    settings = local_settings(folder, workers=1, **limits)
    statuses, enough = [], threading.Event()
    with running_server(settings.grpc_port, sell), running_edge(settings) as envoy:
        wait_until_ready(settings)

        def send_orders():
            with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
                while not enough.is_set():
                    statuses.append(send_order(settings, client))
                    enough.wait(0.02)

        thread = threading.Thread(target=send_orders)
        thread.start()
        try:
            wait_until(lambda: statuses)
            yield settings, psutil.Process(envoy.pid), statuses
        finally:
            enough.set()
            thread.join()


def send_order(settings, client):
    """Send an order, and return the HTTP status. None means that the connection was closed."""
    try:
        return client.post(
            f"http://127.0.0.1:{settings.rest_port}{ROUTE}", json={"numbers": ["+14155550100"]}
        ).status_code
    except httpx.TransportError:
        return None


def allow_open_files(count):
    """Raise this process's limit of open files, or skip the test. Envoy raises its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"{count} open files are needed, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


HEAD = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n".encode()
UNFINISHED_REQUESTS = {
    "nothing": b"",
    "a byte": b"P",
    "unfinished headers": HEAD[:-2],
    "an unfinished body": HEAD,
    # With an empty SETTINGS frame.
    "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5),
}


@pytest.mark.parametrize("sent", UNFINISHED_REQUESTS.values(), ids=UNFINISHED_REQUESTS)
def test_an_edge_full_of_idle_connections_still_serves_old_and_new_clients(tmp_path, times, sent):
    connections_max = times(200, 10_000)
    allow_open_files(connections_max + 500)
    with served_edge(tmp_path, edge_connections_max=connections_max) as (settings, _, statuses), ExitStack() as opened:
        for _ in range(connections_max + 50):
            connection = socket.create_connection(("127.0.0.1", settings.rest_port))
            opened.enter_context(connection)
            with suppress(OSError):  # the edge closes connections beyond its limit
                connection.sendall(sent)
        served = len(statuses)

        def send_order_of_a_new_client():
            with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
                return send_order(settings, client)

        wait_until(lambda: send_order_of_a_new_client() == 200)
        wait_until(lambda: len(statuses) > served + 10)
        assert set(statuses) == {200}


MEMORY_MB_MAX = 128
"""The edge's limit for memory in this test."""
OVERSHOOT_BYTES_MAX = 64 * 2**20
"""How far it may exceed the limit. It checks its memory only now and then, and needs some beside the bodies."""


def test_unfinished_bodies_do_not_fill_the_memory(tmp_path, times):
    """Bodies of almost the greatest length, on many streams of many connections."""
    with served_edge(tmp_path, edge_memory_mb_max=MEMORY_MB_MAX) as (settings, envoy, statuses), ExitStack() as opened:
        before = envoy.memory_info().rss
        for _ in range(times(60, 200)):
            with suppress(OSError):  # an edge without memory closes connections
                opened.enter_context(unfinished_bodies(settings.rest_port))
            time.sleep(0.1)
            assert envoy.memory_info().rss - before < MEMORY_MB_MAX * 2**20 + OVERSHOOT_BYTES_MAX
        served = len(statuses)
        wait_until(lambda: statuses[served:].count(200) > 10)
        assert set(statuses) <= {200, 503, None}


@contextmanager
def unfinished_bodies(port):
    with http2(port) as (state, connection):
        state.outbound_flow_control_window = 2**30  # ignore how much the edge allows
        for stream in range(1, 200, 2):
            state.send_headers(stream, [*REST_HEADERS, ("content-type", "application/json")])
            for _ in range(4):
                state.send_data(stream, bytes(16_000))
        connection.sendall(state.data_to_send())
        yield


# ---------------------------------------------------------------- too many frames


@contextmanager
def http2(port):
    """An h2 state and its socket. The preface is sent, and the caller sends what it puts into the state."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        yield state, connection


def flood(port, put):
    """Send FRAMES[put] frames, and return whether the other side closed the connection."""
    with http2(port) as (state, connection):
        try:
            for i in range(FRAMES[put]):
                put(state, i)
                if i % 100 == 99:
                    connection.sendall(state.data_to_send())
        except OSError:
            return True
        connection.settimeout(5)
        with suppress(OSError):
            while connection.recv(65536):
                pass
            return True
        return False


REST_HEADERS = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", ROUTE)]


def ping(state, i):
    state.ping(i.to_bytes(8, "big"))


def reset(state, i):
    stream = 2 * i + 1
    headers = [
        *((":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", METHOD)),
        *(("content-type", "application/grpc"), ("te", "trailers")),
    ]
    state.send_headers(stream, headers)
    state.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)


FRAMES = {ping: 200_000, reset: 20_000}  # more pings than a connection can buffer acknowledgements for


@pytest.mark.parametrize("put", [ping, reset])
def test_a_flood_of_frames_ends_its_own_connection_only(well_behaved, port, put, service):
    before = len(well_behaved)
    ended = flood(port, put)
    # A worker only refuses the streams. In production the edge is in front of it.
    assert ended or (put, port) == (reset, service.settings.grpc_port)
    wait_until(lambda: len(well_behaved) >= before + 10)
