"""Keeps processes running: starts them, restarts them when they exit, and stops them in an orderly way."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from server.errors import OperatorError

log = logging.getLogger(__name__)

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 10.0
"""How long to wait before a restart. The pause doubles with each restart."""

STEADY_SECONDS = 5
"""A process that ran for longer than this is restarted after the shortest pause."""

REPEATED_SIGNAL_SECONDS = 1.0
"""A second signal later than this stops us at once."""


async def until_stopped(work: Coroutine[None, None, None]) -> None:
    """Run `work` until it ends, or until SIGTERM or SIGINT. Then cancel it and wait for its clean-up.

    A second signal ends this process at once, unless it comes together with the first.
    """
    task, first_at = asyncio.create_task(work), 0.0

    def stop() -> None:
        nonlocal first_at
        if not first_at:
            first_at = time.monotonic()
            task.cancel()
        elif time.monotonic() - first_at > REPEATED_SIGNAL_SECONDS:
            os._exit(1)  # our child processes see that their stdin closes, and exit too

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    with suppress(asyncio.CancelledError):
        await task


class ManagedProcess(Protocol):
    """A child process that a Supervisor starts, restarts and stops."""

    name: str

    async def start(self) -> None:
        """Start it, and return when it does its work. Raises OperatorError if it cannot."""

    async def wait(self) -> int:
        """Wait until it exits, and return its exit status. Returns at once if it never ran."""

    async def stop(self) -> None:
        """Stop it in an orderly way and in bounded time. Does nothing if it does not run."""


class Supervisor:
    """Starts one process, and restarts it whenever it exits."""

    def __init__(self, process: ManagedProcess) -> None:
        self._process = process
        self._restarting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process, and restart it from now on. Raises OperatorError if it cannot start."""
        await self._process.start()
        self._restarting = asyncio.create_task(self._restart_when_it_exits())

    async def replace(self) -> None:
        """Stop the process and start it again. Raises OperatorError if it cannot start, but keeps trying."""
        await self.stop()
        try:
            await self._process.start()
        finally:
            self._restarting = asyncio.create_task(self._restart_when_it_exits())

    async def stop(self) -> None:
        """Stop the process and do not restart it."""
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait({self._restarting})
        await self._process.stop()

    async def _restart_when_it_exits(self) -> None:
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            started_at = time.monotonic()
            status = await self._process.wait()
            was_steady = time.monotonic() - started_at > STEADY_SECONDS
            # A process that exits soon after each start must not keep the machine busy with restarts.
            pause_seconds = PAUSE_SECONDS_MIN if was_steady else min(2 * pause_seconds, PAUSE_SECONDS_MAX)
            log.error("%s exited with status %d, restarting it", self._process.name, status)
            await asyncio.sleep(pause_seconds)
            try:
                await self._process.start()
            except (OperatorError, OSError) as error:
                # The next round waits until this attempt's process is gone, and then tries again.
                log.error("%s", error)


@asynccontextmanager
async def supervised(processes: Sequence[ManagedProcess]) -> AsyncIterator[list[Supervisor]]:
    """Start these processes, keep them running, and stop them together. Raises OperatorError if one cannot start."""
    supervisors = [Supervisor(process) for process in processes]
    try:
        started = await asyncio.gather(*(supervisor.start() for supervisor in supervisors), return_exceptions=True)
        for failure in filter(None, started):
            raise failure
        yield supervisors
    finally:
        await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
