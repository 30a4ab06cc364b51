"""Clients that mean no good: each is refused cleanly, and all the while another client is served."""

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

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from server.config import REQUEST_BODY_BYTES_MAX
from tests.contract.edges import running_edge, running_server, sell, wait_until_ready
from tests.faults.conftest import is_envoy, is_worker
from tests.support.callers import METHOD, ROUTE, TIMEOUT_SECONDS, Grpc, Rest
from tests.support.customer import Customer
from tests.support.stack import local_settings, wait_until

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
    """Somebody else's orders, over REST and gRPC, from beginning to end of a test: each is placed, nothing grows."""
    answers, enough = [], threading.Event()

    def buy():
        with (
            httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client,
            grpc.insecure_channel(service.grpc_targets[0]) as channel,
        ):
            while not enough.is_set():
                for call in (Rest(client), Grpc(channel)):
                    answers.append(call(customer.key, numbers=customer.numbers(1)).status)
                enough.wait(0.02)

    processes = [p for p in service.up.processes() if is_worker(p) or is_envoy(p)]
    before = sum(process.memory_info().rss for process in processes)
    thread = threading.Thread(target=buy)
    thread.start()
    yield answers
    served = len(answers)
    wait_until(lambda: len(answers) > served or not thread.is_alive())
    enough.set()
    thread.join()
    assert set(answers) == {200}
    assert sum(process.memory_info().rss for process in processes) - before < GROWTH_BYTES_MAX


# ---------------------------------------------------------------- too much


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


def test_bodies_that_come_slowly_hold_up_nobody(service, customer, well_behaved, times):
    """And in the end they are dropped."""
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
        if times(False, True):  # the limit is 10 seconds
            for connection in slow:
                assert connection.recv(12) == b"HTTP/1.1 408"
    finally:
        for connection in slow:
            connection.close()


# ---------------------------------------------------------------- too many connections, too much memory


@contextmanager
def served_edge(folder, **limits):
    """An edge with such limits before a good server, and the answers that a client of it gets on one connection."""
    settings = local_settings(folder, workers=1, **limits)
    answers, enough = [], threading.Event()
    with running_server(settings.grpc_port, sell), running_edge(settings) as envoy:
        wait_until_ready(settings)

        def buy():
            with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
                while not enough.is_set():
                    answers.append(order(settings, client))
                    enough.wait(0.02)

        thread = threading.Thread(target=buy)
        thread.start()
        try:
            wait_until(lambda: answers)
            yield settings, psutil.Process(envoy.pid), answers
        finally:
            enough.set()
            thread.join()


def order(settings, client):
    """The HTTP status of an order; None where the connection was closed."""
    try:
        return client.post(
            f"http://127.0.0.1:{settings.rest_port}{ROUTE}", json={"numbers": ["+14155550100"]}
        ).status_code
    except httpx.TransportError:
        return None


def many_files(count):
    """Allow this process so many open files. Envoy allows itself what it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"{count} open files are needed, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


HEAD = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n".encode()
BEGINNINGS = {
    "nothing": b"",
    "a byte": b"P",
    "unfinished headers": HEAD[:-2],
    "an unfinished body": HEAD,
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5),
}


@pytest.mark.parametrize("sent", BEGINNINGS.values(), ids=BEGINNINGS)
def test_connections_that_ask_for_nothing_make_room_for_others(tmp_path, times, sent):
    """All that an edge keeps open. Who has a connection is served on, and who comes is served soon."""
    connections_max = times(200, 10_000)
    many_files(connections_max + 500)
    with served_edge(tmp_path, edge_connections_max=connections_max) as (settings, _, answers), ExitStack() as opened:
        for _ in range(connections_max + 50):
            connection = socket.create_connection(("127.0.0.1", settings.rest_port))
            opened.enter_context(connection)
            with suppress(OSError):  # one too many, and closed
                connection.sendall(sent)
        served = len(answers)

        def newcomer():
            with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
                return order(settings, client)

        wait_until(lambda: newcomer() == 200)
        wait_until(lambda: len(answers) > served + 10)
        assert set(answers) == {200}


MEMORY_MB_MAX = 128
"""What an edge may fill in this test."""
OVERSHOOT_BYTES_MAX = 64 * 2**20
"""What it may fill between two looks at its memory, beside what no body fills."""


def test_unfinished_bodies_do_not_fill_the_memory(tmp_path, times):
    """On many streams of many connections, each of almost the greatest length."""
    with served_edge(tmp_path, edge_memory_mb_max=MEMORY_MB_MAX) as (settings, envoy, answers), ExitStack() as opened:
        before = envoy.memory_info().rss
        for _ in range(times(60, 200)):
            with suppress(OSError):  # refused
                opened.enter_context(unfinished_bodies(settings.rest_port))
            time.sleep(0.1)
            assert envoy.memory_info().rss - before < MEMORY_MB_MAX * 2**20 + OVERSHOOT_BYTES_MAX
        served = len(answers)
        wait_until(lambda: answers[served:].count(200) > 10)
        assert set(answers) <= {200, 503, None}


@contextmanager
def unfinished_bodies(port):
    with http2(port) as (state, connection):
        state.outbound_flow_control_window = 2**30  # whatever the edge allows
        for stream in range(1, 200, 2):
            state.send_headers(stream, [*REST_HEADERS, ("content-type", "application/json")])
            for _ in range(4):
                state.send_data(stream, bytes(16_000))
        connection.sendall(state.data_to_send())
        yield


# ---------------------------------------------------------------- too many frames


@contextmanager
def http2(port):
    """A connection with its preface sent, and a way to send what has been put into it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        yield state, connection


def flood(port, put):
    """Send frames until there were enough or we are shown the door; whether that was so."""
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


FRAMES = {ping: 200_000, reset: 20_000}  # more pings than the answers to which a connection can hold


@pytest.mark.parametrize("put", [ping, reset])
def test_a_flood_of_frames_does_no_harm(well_behaved, port, put, service):
    """It ends its connection; only a worker, which the edge is in front of, just refuses more and more streams."""
    before = len(well_behaved)
    ended = flood(port, put)
    assert ended or (put, port) == (reset, service.settings.grpc_port)
    wait_until(lambda: len(well_behaved) >= before + 10)
