"""Envoy's admin page. It obeys whoever reaches it, so it is on a Unix socket in a folder that only we may enter."""

import json
import socket
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from server.config import Settings
from server.run.embedded.files import socket_folder

TIMEOUT_SECONDS = 2.0
SOCKET_MODE = 0o600


def admin_socket(settings: Settings) -> Path:
    """The path of the socket, one a port: edges may share a data folder. Its folder exists. Raises OperatorError."""
    name = f"envoy-{settings.rest_port}.sock"
    return socket_folder(settings.data_dir, name) / name


def ask(settings: Settings, method: str, path: str) -> bytes:
    """What Envoy answers there. Raises OSError when it does not answer 200."""
    connection = _Connection(admin_socket(settings))
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
    except HTTPException as error:  # it ended meanwhile
        raise OSError(f"Envoy did not answer {path}: {error!r}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(f"Envoy answered {path} with {answer.status}")
    return body


def stat(settings: Settings, name: str) -> int:
    """One of Envoy's counters or gauges; 0 while it has none of that name. Raises OSError as `ask` does."""
    stats = json.loads(ask(settings, "GET", f"/stats?format=json&filter=^{name}$"))["stats"]
    return sum(int(each["value"]) for each in stats if "value" in each)


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
