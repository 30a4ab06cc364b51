"""A proxy for HTTP between a client and the edge, which loses or replaces responses."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

PART_BYTES = 65_536
Mishap = Callable[[socket.socket, bytes], None]
"""What becomes of a response: it gets the client's connection and the bytes of the response."""


def lose(_client: socket.socket, _response: bytes) -> None:
    """Close the connection without a response, although the request was carried out."""


def respond(status: int, body: str, *headers: str) -> Mishap:
    """Send another response instead."""
    head = [f"HTTP/1.1 {status} Mishap", f"content-length: {len(body)}", "connection: close", *headers]
    return lambda client, _response: client.sendall(("\r\n".join(head) + f"\r\n\r\n{body}").encode())


class Mishaps:
    """Listens while entered. Each request takes the next mishap, and reaches the edge first. Then all goes through."""

    def __init__(self, port: int, *mishaps: Mishap) -> None:
        """`port` is the edge's. Each connection has one request: the proxy closes it then."""
        self._port = port
        self._mishaps = [*mishaps]
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def idempotency_keys(self) -> list[str]:
        """The idempotency key of each request."""
        lines = [line for request in self.requests for line in request.decode().split("\r\n")]
        return [line.partition(": ")[2] for line in lines if line.lower().startswith("idempotency-key:")]

    def spoil(self, mishap: Mishap) -> None:
        """Let this happen to one request more."""
        self._mishaps.append(mishap)

    def __enter__(self) -> "Mishaps":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):  # the listener is shut down
            while True:
                client, _ = self._listener.accept()
                with client:
                    self._exchange(client)

    def _exchange(self, client: socket.socket) -> None:
        with suppress(ConnectionError):
            if request := _message_from(client):
                self.requests.append(request)
                with socket.create_connection(("127.0.0.1", self._port)) as edge:
                    edge.sendall(request)
                    response = _message_from(edge)
                mishap = self._mishaps.pop(0) if self._mishaps else socket.socket.sendall
                mishap(client, response)


def _message_from(connection: socket.socket) -> bytes:
    """Read one HTTP message, which has a Content-Length or no body."""
    message = b""
    while b"\r\n\r\n" not in message:
        if not (part := connection.recv(PART_BYTES)):
            return b""
        message += part
    head, _, body = message.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < sum(map(int, lengths)):
        body += connection.recv(PART_BYTES)
    return head + b"\r\n\r\n" + body
