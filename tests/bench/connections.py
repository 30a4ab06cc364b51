"""The connections of the load generator. They send prepared bytes over plain sockets.

HTTP/2 is written by hand, with only what a gRPC server needs. A real Python gRPC client costs about as much CPU as the
server, so the benchmark would measure the client.
"""

import json
import random
import re
import socket
import struct
from collections.abc import Iterator
from itertools import cycle
from time import perf_counter_ns
from typing import Protocol

from tests.bench.load import Client, Group

# Not from tests.support.callers, which would load gRPC and httpx into the generator.
ROUTE = "/v1/phone-numbers/orders"
METHOD = "/ordernumbers.v1.PhoneNumberService/OrderNumbers"
RECEIVE_BYTES_MAX = 1 << 18


class Connection(Protocol):
    """One client's connection."""

    socket: socket.socket
    waiting: int
    """How many orders wait for their response."""

    def fill(self) -> None:
        """Send as many orders as may be in flight."""

    def receive(self) -> None:
        """Read what has arrived, count the responses, and `fill`."""


# ---------------------------------------------------------------- gRPC: HTTP/2 (RFC 9113)

FRAME = struct.Struct(">HBBBI")  # length in 24 bits, type, flags, stream
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
WINDOW_BYTES = 65535
WINDOW_BYTES_MAX = 2**31 - 1
INITIAL_WINDOW_SIZE = 4  # a setting
OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _frame_start(kind, flags, len(payload)) + stream.to_bytes(4, "big") + payload


def _frame_start(kind: int, flags: int, length: int) -> bytes:
    """A frame up to its stream id."""
    return length.to_bytes(3, "big") + bytes((kind, flags))


def _opening() -> bytes:
    """The first bytes of a client."""
    # The largest windows, so that flow control never delays a response.
    settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW_BYTES_MAX)
    window = (WINDOW_BYTES_MAX - WINDOW_BYTES).to_bytes(4, "big")
    return OPENING + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, window)


def _header(name: str, value: str) -> bytes:
    """A header in HPACK (RFC 7541, 6.2.2)."""
    # A literal without indexing changes no table, so the same bytes can be sent for every request.
    return b"\0" + b"".join(len(text).to_bytes(1, "big") + text.encode() for text in (name, value))


def _grpc_headers(key: str, authority: str) -> bytes:
    """A HEADERS frame for stream 0."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": METHOD,
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": "20S",
        "authorization": f"Bearer {key}",
    }
    return _frame(HEADERS, END_HEADERS, 0, b"".join(_header(*each) for each in fields.items()))


def grpc_body(numbers: list[str]) -> bytes:
    """A DATA frame for stream 0: an OrderNumbersRequest with only `numbers` (field 1), and gRPC's prefix."""
    message = b"".join(b"\x0a" + len(number).to_bytes(1, "big") + number.encode() for number in numbers)
    return _frame(DATA, END_STREAM, 0, b"\0" + len(message).to_bytes(4, "big") + message)


class GrpcConnection:
    """Many orders at a time on one connection.

    It reads only the headers of frames. An order succeeded if its stream carried a message.
    """

    def __init__(self, client: Client, group: Group) -> None:
        self.socket = _connected(client.address)
        self.socket.sendall(_opening())
        self._group = group
        self._in_flight = client.in_flight
        host, port = client.address
        headers = [_grpc_headers(key, f"{host}:{port}") for key in _shuffled(client.keys)]
        # Without the stream id, which is bytes 5 to 8 of a frame.
        self._headers: Iterator[tuple[bytes, bytes]] = cycle([(each[:5], each[9:]) for each in headers])
        self._window_bytes = WINDOW_BYTES
        self._next_stream = 1
        self._sent_ns: dict[int, int] = {}
        self._succeeded: set[int] = set()
        self._received = b""

    @property
    def waiting(self) -> int:
        return len(self._sent_ns)

    def fill(self) -> None:
        if wanted := self._requests():
            self.socket.sendall(wanted)

    def _requests(self) -> bytes:
        parts: list[bytes] = []
        group, sent = self._group, self._sent_ns
        # A body is sent only if the connection's flow-control window has room for a whole one.
        while len(sent) < self._in_flight and self._window_bytes >= group.body_bytes_max:
            body = group.next_body()
            if body is None:
                break
            start, rest = next(self._headers)
            stream = self._next_stream.to_bytes(4, "big")
            parts += (start, stream, rest, body[:5], stream, body[9:])
            sent[self._next_stream] = perf_counter_ns()
            self._next_stream += 2  # streams of a client have odd numbers
            self._window_bytes -= len(body) - 9
        return b"".join(parts)

    def receive(self) -> None:
        received = self.socket.recv(RECEIVE_BYTES_MAX)
        if not received:
            raise SystemExit("the server closed a connection")
        now_ns = perf_counter_ns()
        received = self._received + received
        replies, at = b"", 0
        while at + 9 <= len(received):
            high, low, kind, flags, stream = FRAME.unpack_from(received, at)
            end = at + 9 + (high << 8 | low)
            if end > len(received):
                break
            if kind == DATA:
                self._succeeded.add(stream)
            if kind in (DATA, HEADERS):
                if flags & END_STREAM:
                    self._count_response(stream, now_ns, received[at + 9 : end])
            else:
                replies += self._control(kind, flags, stream, received[at + 9 : end], now_ns)
            at = end
        self._received = received[at:]
        if wanted := replies + self._requests():
            self.socket.sendall(wanted)

    def _count_response(self, stream: int, now_ns: int, last: bytes) -> None:
        succeeded = stream in self._succeeded
        self._succeeded.discard(stream)
        self._group.tally.add(now_ns - self._sent_ns.pop(stream), succeeded, last)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes, now_ns: int) -> bytes:
        """Handle a frame that is not a response, and return the frame to send back."""
        if kind == WINDOW_UPDATE and stream == 0:
            self._window_bytes += int.from_bytes(payload, "big")
        elif kind == PING and not flags & ACK:
            return _frame(PING, ACK, 0, payload)
        elif kind == SETTINGS and not flags & ACK:
            return _frame(SETTINGS, ACK, 0, b"")
        elif kind == RST_STREAM and stream in self._sent_ns:
            self._succeeded.discard(stream)
            self._count_response(stream, now_ns, b"the stream was reset")
        elif kind == GOAWAY:
            raise SystemExit(f"the server closes the connection: {payload[8:].decode(errors='replace')}")
        return b""


# ---------------------------------------------------------------- REST: HTTP/1.1

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LAST_CHUNK = b"\r\n0\r\n\r\n"


def _rest_headers(key: str, authority: str) -> bytes:
    lines = [
        f"POST {ROUTE} HTTP/1.1",
        f"host: {authority}",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        "",
    ]
    return "\r\n".join(lines).encode()


def rest_body(numbers: list[str]) -> bytes:
    """The last header and the body."""
    body = json.dumps({"numbers": numbers}).encode()
    return b"content-length: %d\r\n\r\n%b" % (len(body), body)


class RestConnection:
    """One order at a time on one connection: HTTP/1.1 allows no more."""

    def __init__(self, client: Client, group: Group) -> None:
        if client.in_flight != 1:
            raise ValueError("HTTP/1.1 carries one order at a time")
        self.socket = _connected(client.address)
        self._group = group
        host, port = client.address
        self._headers = cycle([_rest_headers(key, f"{host}:{port}") for key in _shuffled(client.keys)])
        self._received = b""
        self._sent_ns = 0
        self.waiting = 0

    def fill(self) -> None:
        body = self._group.next_body()
        if body is not None:
            self.waiting = 1
            self._sent_ns = perf_counter_ns()
            self.socket.sendall(next(self._headers) + body)

    def receive(self) -> None:
        received = self.socket.recv(RECEIVE_BYTES_MAX)
        if not received:
            raise SystemExit("the edge closed a connection")
        self._received += received
        if not _is_complete(self._received):
            return
        succeeded = self._received.startswith(b"HTTP/1.1 200 ")
        self._group.tally.add(perf_counter_ns() - self._sent_ns, succeeded, self._received)
        self._received, self.waiting = b"", 0
        self.fill()


def _is_complete(response: bytes) -> bool:
    end_of_headers = response.find(b"\r\n\r\n")
    if end_of_headers < 0:
        return False
    length = CONTENT_LENGTH.search(response, 0, end_of_headers)
    return len(response) >= end_of_headers + 4 + int(length[1]) if length else response.endswith(LAST_CHUNK)


# ---------------------------------------------------------------- both


def _connected(address: tuple[str, int]) -> socket.socket:
    # A blocking socket will do. Servers read all the time, so sending is quick, and it is read only when it is ready.
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _shuffled(keys: list[str]) -> list[str]:
    return random.sample(keys, len(keys))
