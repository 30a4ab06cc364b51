"""`ordernumbers serve`: the parent process of the workers, which starts, watches, replaces and stops them."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from server.config import PREFIX, Settings, host_and_port, variable_of
from server.errors import OperatorError
from server.log import log_as_json
from server.run.relay import Relay
from server.run.supervisor import Supervisor, supervised, until_stopped

log = logging.getLogger(__name__)

READY = b"ready\n"
"""What a worker prints when it serves. Any other first line is the reason why it cannot start."""

GRPC_EXPERIMENTS = "-event_engine_listener"
"""Turns off gRPC core's newer listener, which passes each event through more threads.

CPU per call, for a server that does nothing: 188 to 203 µs without it, and 216 to 276 with it. A gRPC version that
does not know the name logs that and ignores it.
"""

START_SECONDS_MAX = 30

KILL_AFTER_SECONDS = 5
"""How long a worker may take to exit after its longest possible drain, before we kill it."""


def serve(settings: Settings, database_url: str) -> None:
    """Run the workers until SIGTERM or SIGINT, then drain them together. SIGHUP replaces them one by one.

    Raises OperatorError if a worker cannot start.
    """
    log_as_json()
    asyncio.run(until_stopped(_serve(settings, database_url)))


async def _serve(settings: Settings, database_url: str) -> None:
    hangup = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    async with supervised(workers(settings, database_url)) as supervisors:
        log.info("serving on %s", ", ".join(host_and_port(settings.grpc_bind, port) for port in settings.grpc_ports))
        await _replace_at_each(hangup, supervisors, settings.drain_ms / 1000)


async def _replace_at_each(hangup: asyncio.Event, supervisors: Sequence[Supervisor], pause_seconds: float) -> None:
    """At each SIGHUP, replace the workers one by one. The others serve meanwhile."""
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            for supervisor in supervisors:
                await supervisor.replace()
                # The edge's next health check must see this worker serve before the next worker stops.
                await asyncio.sleep(pause_seconds)
            log.info("all workers are replaced")
        except OperatorError as error:
            log.error("%s. The other workers are not replaced", error)


def workers(settings: Settings, database_url: str) -> list["Worker"]:
    """Return the workers of the settings, one per port.

    Raises OperatorError if others than this machine could call them without TLS.
    """
    if not (settings.grpc_bind.is_loopback or settings.grpc_tls_cert or settings.grpc_insecure):
        tls = ", ".join(map(variable_of, ("grpc_tls_cert", "grpc_tls_key", "grpc_tls_ca")))
        raise OperatorError(
            f"{variable_of('grpc_bind')}={settings.grpc_bind} is open to other machines. "
            f"Set {tls}, or {variable_of('grpc_insecure')}=true"
        )
    return [Worker(index, settings, database_url) for index in range(settings.workers)]


class Worker:
    """A worker process as a managed process."""

    def __init__(self, index: int, settings: Settings, database_url: str) -> None:
        self.name = f"worker {index}"
        # Its own log lines go straight to our stderr. What else it prints goes through the relay.
        self._log_fd = os.dup(2)
        self._command = [sys.executable, "-P", "-m", "server.run.worker", str(index), str(self._log_fd)]
        # Every user of the machine can read a command line. The database's URL may hold a password, so it is not there.
        environment = environment_of(settings.model_copy(update={"database_url": database_url}))
        self._environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} | environment
        self._stop_seconds_max = (settings.drain_ms + settings.deadline_max_ms) / 1000 + KILL_AFTER_SECONDS
        self._process: asyncio.subprocess.Process | None = None
        self._log: Relay | None = None

    async def start(self) -> None:
        self._log = Relay(self.name)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,  # the worker exits when it closes
                stdout=asyncio.subprocess.PIPE,
                stderr=self._log.write_end,
                pass_fds=[self._log_fd],
                env=self._environment,
                start_new_session=True,  # Ctrl-C at the terminal must reach only the parent, which stops us in order
            )
        finally:
            self._log.close()
        first_line = await self._read_first_line(self._process)
        if first_line != READY:
            await self._kill(self._process)
            raise OperatorError(f"{self.name} cannot start: {first_line.decode().strip() or 'see its error above'}")

    async def wait(self) -> int:
        if self._process is None:
            return 0
        status = await self._process.wait()
        await self._end_log()
        return status

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), self._stop_seconds_max)
            await self._end_log()
        except TimeoutError:
            log.error("%s did not drain in %g s, killing it", self.name, self._stop_seconds_max)
            await self._kill(process)

    async def _read_first_line(self, process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None  # noqa: S101
        try:
            return await asyncio.wait_for(process.stdout.readline(), START_SECONDS_MAX)
        except TimeoutError:
            return f"it was not ready within {START_SECONDS_MAX} s".encode()

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await self._end_log()

    async def _end_log(self) -> None:
        if self._log:
            await asyncio.to_thread(self._log.wait)


def environment_of(settings: Settings) -> dict[str, str]:
    """Return our own environment, with these settings in place of ours."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "DATABASE_URL"))}
    # A secret that is in a file stays out of the environment.
    in_file = {"database_url"} if settings.database_url_file else set[str]()
    values = settings.model_dump(mode="json", exclude_none=True, exclude=in_file)
    return inherited | {variable_of(name): str(value) for name, value in values.items()}
