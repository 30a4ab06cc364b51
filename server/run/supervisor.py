"""Keeps processes alive: starts them, starts them again when they end, stops them in an orderly way."""

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

STEADY_SECONDS = 5
"""What ran that long before it ended is started again at once."""

INSIST_SECONDS = 1.0
"""A signal to stop that comes again so much later means now."""


async def until_stopped(work: Coroutine[None, None, None]) -> None:
    """Do the work until it ends or SIGTERM or SIGINT comes; then it is cancelled and its clean-up waited for.

    A second signal, unless it comes with the first, ends this process on the spot.
    """
    task, first_at = asyncio.create_task(work), 0.0

    def told() -> None:
        nonlocal first_at
        if not first_at:
            first_at = time.monotonic()
            task.cancel()
        elif time.monotonic() - first_at > INSIST_SECONDS:
            os._exit(1)  # every process of ours notices and ends too

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told)
    with suppress(asyncio.CancelledError):
        await task


class ManagedProcess(Protocol):
    """A process of the whole, which can be started again."""

    name: str

    async def start(self) -> None:
        """Return when it does its work. Raises OperatorError saying why it does not."""

    async def wait(self) -> int:
        """Its exit status, when it has ended; at once if it never ran."""

    async def stop(self) -> None:
        """End it in an orderly way, and in bounded time. Nothing if it does not run."""


class Supervisor:
    """Starts a part again when it ends by itself: at once, then after ever longer pauses."""

    def __init__(self, process: ManagedProcess) -> None:
        self._process = process
        self._restarting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._process.start()
        self._restarting = asyncio.create_task(self._restart_when_ended())

    async def replace(self) -> None:
        """Stop, then start; raises OperatorError as `start` does, and then goes on trying."""
        await self.stop()
        try:
            await self._process.start()
        finally:
            self._restarting = asyncio.create_task(self._restart_when_ended())

    async def stop(self) -> None:
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait({self._restarting})
        await self._process.stop()

    async def _restart_when_ended(self) -> None:
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            began = time.monotonic()
            status = await self._process.wait()
            steady = time.monotonic() - began > STEADY_SECONDS
            pause_seconds = PAUSE_SECONDS_MIN if steady else min(2 * pause_seconds, PAUSE_SECONDS_MAX)
            log.error("%s ended by itself, with status %d; starting it again", self._process.name, status)
            await asyncio.sleep(pause_seconds)
            try:
                await self._process.start()
            except (OperatorError, OSError) as error:
                log.error("%s", error)


@asynccontextmanager
async def supervised(processes: Sequence[ManagedProcess]) -> AsyncIterator[list[Supervisor]]:
    """Start these processes and keep them running. At the end stop all at once. Raises OperatorError when one cannot start."""
    supervisors = [Supervisor(process) for process in processes]
    try:
        started = await asyncio.gather(*(supervisor.start() for supervisor in supervisors), return_exceptions=True)
        for failure in filter(None, started):
            raise failure
        yield supervisors
    finally:
        await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
