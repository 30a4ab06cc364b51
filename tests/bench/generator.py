"""The load: prepared requests over plain sockets, a fixed number of them in flight, in a process of its own.

`run(load)` starts it. HTTP/2 is spoken by hand, with only what a gRPC server needs to hear: a real Python gRPC client
costs about as much as the server does, and would be what is measured. What this one costs is in every result
(`generator_cpu_seconds`) and in README.md.

A request is one order; every client sends the bodies of its group, each once. An answer that is no success is counted
as refused, and the first one is kept as a sample; whether that is a failure is for the caller to say.
"""

import gc
import json
import random
import re
import resource
import selectors
import socket
import struct
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from time import monotonic, perf_counter_ns
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]
ROUTE = "/v1/phone-numbers/orders"
METHOD = "/ordernumbers.v1.PhoneNumberService/OrderNumbers"
RECEIVE_BYTES_MAX = 1 << 18
DRAIN_SECONDS_MAX = 30
POLL_SECONDS = 0.01


# ---------------------------------------------------------------- what is to be done, and what came of it


@dataclass(frozen=True)
class Client:
    """A connection over which so many orders are in flight at a time, in the name of these keys in turn."""

    group: str
    address: tuple[str, int]
    in_flight: int
    keys: list[str]


@dataclass(frozen=True)
class Load:
    """`orders` holds, for each group of clients, the numbers of every order. It ends when a group has no more."""

    transport: str
    clients: list[Client]
    orders: dict[str, list[list[str]]]
    warm_seconds: float
    seconds: float


@dataclass(frozen=True)
class GroupResult:
    """Of the measured time: orders answered, and latencies of those. `taken` and `…_in_all` are of the whole run."""

    succeeded: int
    refused: int
    p50_ms: float
    p99_ms: float
    taken: int
    succeeded_in_all: int
    refused_in_all: int
    sample: str


@dataclass(frozen=True)
class Result:
    """What came of a load; `seconds` is how long it was really measured."""

    seconds: float
    generator_cpu_seconds: float
    groups: dict[str, GroupResult]


def run(load: Load, began: Callable[[], None] = lambda: None, ended: Callable[[], None] = lambda: None) -> Result:
    """Carry out a load; `began` and `ended` are called when measuring starts and stops. Raises RuntimeError."""
    command = [sys.executable, "-m", "tests.bench.generator"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin
        assert process.stdout
        json.dump(asdict(load), process.stdin)
        process.stdin.close()
        for line in process.stdout:
            match json.loads(line):
                case "began":
                    began()
                case "ended":
                    ended()
                case {"groups": groups, **rest}:
                    return Result(**rest, groups={name: GroupResult(**group) for name, group in groups.items()})
    raise RuntimeError(f"the load generator ended with status {process.returncode}")


# ---------------------------------------------------------------- the process


class Group:
    """Clients that share their orders and are counted together."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._bodies = iter(bodies)
        self.body_bytes_max = max(map(len, bodies), default=0)
        self.taken = 0
        self.exhausted = self.stopped = False
        self.tally = Tally()
        self.tallies = [self.tally]

    def next_body(self) -> bytes | None:
        """The next order's, None when there shall be no more."""
        if self.stopped:
            return None
        body = next(self._bodies, None)
        if body is None:
            self.exhausted = True
        else:
            self.taken += 1
        return body

    def new_tally(self) -> None:
        self.tally = Tally()
        self.tallies.append(self.tally)

    def result(self) -> GroupResult:
        _, measured, _ = self.tallies
        latencies = sorted(measured.latencies_ns)
        return GroupResult(
            succeeded=measured.succeeded,
            refused=measured.refused,
            p50_ms=_quantile_ms(latencies, 0.50),
            p99_ms=_quantile_ms(latencies, 0.99),
            taken=self.taken,
            succeeded_in_all=sum(tally.succeeded for tally in self.tallies),
            refused_in_all=sum(tally.refused for tally in self.tallies),
            sample=next((tally.sample for tally in self.tallies if tally.sample), ""),
        )


@dataclass(slots=True)
class Tally:
    """Answers of one stretch of time."""

    succeeded: int = 0
    refused: int = 0
    latencies_ns: "array[int]" = field(default_factory=lambda: array("q"))
    sample: str = ""

    def add(self, latency_ns: int, succeeded: bool, answer: bytes = b"") -> None:
        self.latencies_ns.append(latency_ns)
        if succeeded:
            self.succeeded += 1
            return
        self.refused += 1
        self.sample = self.sample or re.sub(rb"[^ -~]+", b" ", answer).decode()


def _quantile_ms(ordered_ns: list[int], quantile: float) -> float:
    return ordered_ns[int(quantile * (len(ordered_ns) - 1))] / 1e6 if ordered_ns else 0.0


class Connection(Protocol):
    """One client's connection."""

    socket: socket.socket
    waiting: int

    def fill(self) -> None:
        """Send as many orders as may be in flight."""

    def receive(self) -> None:
        """Read what is there, count what is answered, and `fill`."""


def main() -> None:
    """Read a load from stdin; say on stdout when measuring begins, when it ends, and what the result is."""
    said = json.load(sys.stdin)
    load = Load(**said | {"clients": [Client(**client) for client in said["clients"]]})
    open_, body = {"grpc": (GrpcConnection, _grpc_body), "rest": (RestConnection, _rest_body)}[load.transport]
    groups = {name: Group(list(map(body, orders))) for name, orders in load.orders.items()}
    connections: list[Connection] = [open_(client, groups[client.group]) for client in load.clients]
    gc.freeze()
    gc.disable()
    seconds, cpu_seconds = _drive(load, list(groups.values()), connections)
    result = Result(seconds, cpu_seconds, {name: group.result() for name, group in groups.items()})
    _say(asdict(result))


def _drive(load: Load, groups: list[Group], connections: list[Connection]) -> tuple[float, float]:
    """Seconds measured, and CPU seconds that this process spent meanwhile."""
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.fill()
    _receive_for(selector, groups, load.warm_seconds)
    began, cpu = _mark(groups, "began")
    _receive_for(selector, groups, load.seconds)
    ended, cpu_ended = _mark(groups, "ended")
    _drain(selector, groups, connections)
    return ended - began, cpu_ended - cpu


def _receive_for(selector: selectors.BaseSelector, groups: list[Group], seconds: float) -> None:
    until = monotonic() + seconds
    while monotonic() < until and not any(group.exhausted for group in groups):
        for key, _ in selector.select(POLL_SECONDS):
            key.data.receive()


def _mark(groups: list[Group], event: str) -> tuple[float, float]:
    for group in groups:
        group.new_tally()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _say(event)
    return monotonic(), usage.ru_utime + usage.ru_stime


def _drain(selector: selectors.BaseSelector, groups: list[Group], connections: list[Connection]) -> None:
    for group in groups:
        group.stopped = True
    until = monotonic() + DRAIN_SECONDS_MAX
    while waiting := sum(connection.waiting for connection in connections):
        if monotonic() > until:
            raise SystemExit(f"{waiting} orders were not answered within {DRAIN_SECONDS_MAX} s")
        for key, _ in selector.select(POLL_SECONDS):
            key.data.receive()


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def _connected(address: tuple[str, int]) -> socket.socket:
    # It blocks when sending, which never lasts: servers read all the time. It is read only when there is something.
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _shuffled(keys: list[str]) -> list[str]:
    return random.sample(keys, len(keys))


# ---------------------------------------------------------------- gRPC: HTTP/2 (RFC 9113) by hand

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
    """A frame up to its stream's number."""
    return length.to_bytes(3, "big") + bytes((kind, flags))


def _opening() -> bytes:
    """What a client says first; it never wants to hold a server's answers back."""
    settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW_BYTES_MAX)
    window = (WINDOW_BYTES_MAX - WINDOW_BYTES).to_bytes(4, "big")
    return OPENING + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, window)


def _header(name: str, value: str) -> bytes:
    """HPACK (RFC 7541, 6.2.2): a literal that enters no table, so that every request is the same bytes."""
    return b"\0" + b"".join(len(text).to_bytes(1, "big") + text.encode() for text in (name, value))


def _grpc_headers(key: str, authority: str) -> bytes:
    """A HEADERS frame up to its stream's number, a blank for that, and the rest."""
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


def _grpc_body(numbers: list[str]) -> bytes:
    """A DATA frame: one OrderNumbersRequest of nothing but `numbers` (field 1, strings), with gRPC's prefix."""
    message = b"".join(b"\x0a" + len(number).to_bytes(1, "big") + number.encode() for number in numbers)
    return _frame(DATA, END_STREAM, 0, b"\0" + len(message).to_bytes(4, "big") + message)


class GrpcConnection:
    """Many orders at a time on one connection. Of answers only the frames' headers are read: an order was a success if
    its stream carried a message."""

    def __init__(self, client: Client, group: Group) -> None:
        self.socket = _connected(client.address)
        self.socket.sendall(_opening())
        self._group = group
        self._in_flight = client.in_flight
        host, port = client.address
        headers = [_grpc_headers(key, f"{host}:{port}") for key in _shuffled(client.keys)]
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
        while len(sent) < self._in_flight and self._window_bytes >= group.body_bytes_max:
            body = group.next_body()
            if body is None:
                break
            start, rest = next(self._headers)
            stream = self._next_stream.to_bytes(4, "big")
            parts += (start, stream, rest, body[:5], stream, body[9:])
            sent[self._next_stream] = perf_counter_ns()
            self._next_stream += 2
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
                    self._answered(stream, now_ns, received[at + 9 : end])
            else:
                replies += self._control(kind, flags, stream, received[at + 9 : end], now_ns)
            at = end
        self._received = received[at:]
        if wanted := replies + self._requests():
            self.socket.sendall(wanted)

    def _answered(self, stream: int, now_ns: int, last: bytes) -> None:
        succeeded = stream in self._succeeded
        self._succeeded.discard(stream)
        self._group.tally.add(now_ns - self._sent_ns.pop(stream), succeeded, last)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes, now_ns: int) -> bytes:
        """What a frame that is no answer is answered with."""
        if kind == WINDOW_UPDATE and stream == 0:
            self._window_bytes += int.from_bytes(payload, "big")
        elif kind == PING and not flags & ACK:
            return _frame(PING, ACK, 0, payload)
        elif kind == SETTINGS and not flags & ACK:
            return _frame(SETTINGS, ACK, 0, b"")
        elif kind == RST_STREAM and stream in self._sent_ns:
            self._succeeded.discard(stream)
            self._answered(stream, now_ns, b"the stream was reset")
        elif kind == GOAWAY:
            raise SystemExit(f"the server goes away: {payload[8:].decode(errors='replace')}")
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


def _rest_body(numbers: list[str]) -> bytes:
    """The length and the body."""
    body = json.dumps({"numbers": numbers}).encode()
    return b"content-length: %d\r\n\r\n%b" % (len(body), body)


class RestConnection:
    """One order at a time on one connection, as HTTP/1.1 has it."""

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
        if not _is_whole(self._received):
            return
        succeeded = self._received.startswith(b"HTTP/1.1 200 ")
        self._group.tally.add(perf_counter_ns() - self._sent_ns, succeeded, self._received)
        self._received, self.waiting = b"", 0
        self.fill()


def _is_whole(answer: bytes) -> bool:
    end_of_headers = answer.find(b"\r\n\r\n")
    if end_of_headers < 0:
        return False
    length = CONTENT_LENGTH.search(answer, 0, end_of_headers)
    return len(answer) >= end_of_headers + 4 + int(length[1]) if length else answer.endswith(LAST_CHUNK)


if __name__ == "__main__":
    main()
