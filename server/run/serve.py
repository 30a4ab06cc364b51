"""`ordernumbers serve`: the parent of the workers, and a worker process as its parent sees it."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from server.config import PREFIX, Settings
from server.errors import OperatorError
from server.log import log_as_json
from server.run.supervisor import Supervisor, supervised, until_stopped

log = logging.getLogger(__name__)

READY = b"ready\n"

GRPC_EXPERIMENTS = "-event_engine_listener"
"""gRPC core's older way to listen hands each event through fewer threads: 188 to 203 us of CPU a call instead of 216 to
276, of a server that does nothing. A gRPC that no longer knows the name says so in its log and goes on."""

START_SECONDS_MAX = 30

KILL_AFTER_SECONDS = 5
"""How much longer than its drain may take a worker is waited for."""


def serve(settings: Settings, database_url: str) -> None:
    """Run the workers until SIGTERM or SIGINT, then drain them all at once. SIGHUP replaces one after the other.

    Raises OperatorError when a worker cannot start.
    """
    log_as_json()
    asyncio.run(until_stopped(_serve(settings, database_url)))


async def _serve(settings: Settings, database_url: str) -> None:
    renew = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew.set)
    async with supervised(workers(settings, database_url)) as supervisors:
        log.info("serving on %s", ", ".join(f"{settings.grpc_bind}:{port}" for port in settings.grpc_ports))
        await _renew(supervisors, renew, settings.drain_ms / 1000)


def workers(settings: Settings, database_url: str) -> list["Worker"]:
    """The workers of the settings, one for each port."""
    return [Worker(index, settings, database_url) for index in range(settings.workers)]


async def _renew(supervisors: "Sequence[Supervisor]", renew: asyncio.Event, pause_seconds: float) -> None:
    """For ever: at each order replace the workers one by one, so that the others serve meanwhile."""
    while True:
        await renew.wait()
        renew.clear()
        try:
            for supervisor in supervisors:
                await supervisor.replace()
                await asyncio.sleep(pause_seconds)  # until the edge knows that this one serves again
            log.info("every worker is a new one")
        except OperatorError as error:
            log.error("%s; the others stay as they are", error)


class Worker:
    """One worker process."""

    def __init__(self, index: int, settings: Settings, database_url: str) -> None:
        self.name = f"worker {index}"
        self._command = [sys.executable, "-P", "-m", "server.run.worker", str(index)]
        # Not among the arguments, which everyone on the machine can read: the database's URL may hold a password.
        environment = environment_of(settings.model_copy(update={"database_url": database_url}))
        self._environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} | environment
        self._stop_seconds_max = (settings.drain_ms + settings.deadline_max_ms) / 1000 + KILL_AFTER_SECONDS
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        answer = await self._answer(self._process)
        if answer != READY:
            await self._kill(self._process)
            raise OperatorError(f"{self.name} cannot start: {answer.decode().strip() or 'see its error above'}")

    async def wait(self) -> int:
        return await self._process.wait() if self._process else 0

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), self._stop_seconds_max)
        except TimeoutError:
            log.error("%s did not drain in %g s; it is killed", self.name, self._stop_seconds_max)
            await self._kill(process)

    async def _answer(self, process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None  # noqa: S101
        try:
            return await asyncio.wait_for(process.stdout.readline(), START_SECONDS_MAX)
        except TimeoutError:
            return b"it took too long"

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def environment_of(settings: Settings) -> dict[str, str]:
    """Our own environment, but with these settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "DATABASE_URL"))}
    said = settings.model_dump(mode="json", exclude_none=True)
    names = {name: PREFIX + name.upper() for name in said} | {"database_url": "DATABASE_URL"}
    return inherited | {names[name]: str(value) for name, value in said.items()}
