"""Envoy's admin page, on a Unix socket. Envoy obeys everyone who can connect, so only our user may enter its folder."""

import json
import socket
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from server.config import Settings
from server.run.embedded.files import socket_folder

TIMEOUT_SECONDS = 2.0
SOCKET_MODE = 0o600


def admin_socket(settings: Settings) -> Path:
    """Return the path of the socket, and create its folder. Raises OperatorError if that is not possible."""
    # The port is in the name, because several edges may share a data folder.
    name = f"envoy-{settings.rest_port}.sock"
    return socket_folder(settings.data_dir, name) / name


def ask(settings: Settings, method: str, path: str) -> bytes:
    """Send a request to the admin page, and return the body. Raises OSError if the status is not 200."""
    connection = _UnixConnection(admin_socket(settings))
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
    except HTTPException as error:  # Envoy exited before its response was complete
        raise OSError(f"no response from Envoy to {path}: {error!r}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"Envoy returned {response.status} to {path}")
    return body


def stat(settings: Settings, name: str) -> int:
    """Return one of Envoy's counters or gauges, or 0 if Envoy has none with that name. Raises OSError as `ask` does."""
    stats = json.loads(ask(settings, "GET", f"/stats?format=json&filter=^{name}$"))["stats"]
    return sum(int(each["value"]) for each in stats if "value" in each)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
