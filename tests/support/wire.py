"""gRPC calls over HTTP/2 frame by frame. They can be wrong in ways that no gRPC library allows."""

import socket
from contextlib import suppress
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from tests.support.callers import METHOD, TIMEOUT_SECONDS


def grpc_headers(port: int, key: str, changed: dict[str, str | bytes | None]) -> list[tuple[str, str | bytes]]:
    """The headers of a valid gRPC call, with some changed or added. None removes one."""
    valid: dict[str, str | bytes | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": METHOD,
        ":authority": f"127.0.0.1:{port}",
        "content-type": "application/grpc",
        "te": "trailers",
        "authorization": f"Bearer {key}",
    }
    return [(name, value) for name, value in (valid | changed).items() if value is not None]


def framed(message: bytes) -> bytes:
    """A message with gRPC's prefix: not compressed, and its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


@dataclass
class StreamResponse:
    """What one stream received."""

    headers: dict[str, str] = field(default_factory=dict)
    """Headers and trailers."""
    data: bytes = b""
    is_reset: bool = False
    has_ended: bool = False

    def add(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            self.headers |= {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, DataReceived):
            self.data += event.data
        # A reset after the end is normal: a server sends one to stop the rest of a request.
        self.is_reset |= not self.has_ended and isinstance(event, StreamReset | ConnectionTerminated)
        self.has_ended |= self.is_reset or isinstance(event, StreamEnded)


class Wire:
    """An HTTP/2 connection whose streams can be started and read in any order."""

    def __init__(self, port: int) -> None:
        # Without these checks h2 lets headers out that are invalid.
        config = H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None
        )
        self._connection = H2Connection(config)
        self._connection.initiate_connection()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self._responses: dict[int, StreamResponse] = {}

    def start(self, headers: list[tuple[str, str | bytes]], *, ends: bool = False) -> int:
        """Send the headers on a new stream, and return its number."""
        stream = self._connection.get_next_available_stream_id()
        self._responses[stream] = StreamResponse()
        self._connection.send_headers(stream, headers, end_stream=ends)
        self._flush()
        return stream

    def send(self, stream: int, data: bytes, *, ends: bool) -> None:
        """Send data as flow control allows it, until the stream has ended."""
        while data and not self._responses[stream].has_ended:
            room = min(self._connection.local_flow_control_window(stream), self._connection.max_outbound_frame_size)
            if room:
                part, data = data[:room], data[room:]
                self._connection.send_data(stream, part, end_stream=ends and not data)
                self._flush()
            else:
                self._receive()

    def end(self, stream: int, trailers: list[tuple[str, str]]) -> None:
        self._connection.send_headers(stream, trailers, end_stream=True)
        self._flush()

    def response(self, stream: int) -> StreamResponse:
        """Read until the stream has ended, and return what it received."""
        while not self._responses[stream].has_ended:
            self._receive()
        return self._responses[stream]

    def _receive(self) -> None:
        try:
            raw = self._socket.recv(65536)
            events = self._connection.receive_data(raw) if raw else [ConnectionTerminated()]
        except (ConnectionError, ProtocolError):  # a closed connection, or a frame after GOAWAY
            events = [ConnectionTerminated()]
        for event in events:
            for stream, response in self._responses.items():
                if isinstance(event, ConnectionTerminated) or getattr(event, "stream_id", None) == stream:
                    response.add(event)
        with suppress(ConnectionError):
            self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._connection.data_to_send())

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
