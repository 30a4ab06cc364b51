"""Keeps processes alive: starts them, starts them again when they end, stops them in an orderly way."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from server.errors import BadInput

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


class Part(Protocol):
    """A process of the whole, which can be started again."""

    name: str

    async def start(self) -> None:
        """Return when it does its work. Raises BadInput saying why it does not."""

    async def wait(self) -> int:
        """Its exit status, when it has ended; at once if it never ran."""

    async def stop(self) -> None:
        """End it in an orderly way, and in bounded time. Nothing if it does not run."""


class Keeper:
    """Starts a part again when it ends by itself: at once, then after ever longer pauses."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._part.start()
        self._keeping = asyncio.create_task(self._keep())

    async def replace(self) -> None:
        """Stop, then start; raises BadInput as `start` does, and then goes on trying."""
        await self.stop()
        try:
            await self._part.start()
        finally:
            self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        await self._part.stop()

    async def _keep(self) -> None:
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            began = time.monotonic()
            status = await self._part.wait()
            steady = time.monotonic() - began > STEADY_SECONDS
            pause_seconds = PAUSE_SECONDS_MIN if steady else min(2 * pause_seconds, PAUSE_SECONDS_MAX)
            log.error("%s ended by itself, with status %d; starting it again", self._part.name, status)
            await asyncio.sleep(pause_seconds)
            try:
                await self._part.start()
            except (BadInput, OSError) as error:
                log.error("%s", error)


@asynccontextmanager
async def kept(parts: Sequence[Part]) -> AsyncIterator[list[Keeper]]:
    """The parts, started and kept alive; in the end stopped, all at once. Raises BadInput when one cannot start."""
    keepers = [Keeper(part) for part in parts]
    try:
        started = await asyncio.gather(*(keeper.start() for keeper in keepers), return_exceptions=True)
        for failure in filter(None, started):
            raise failure
        yield keepers
    finally:
        await asyncio.gather(*(keeper.stop() for keeper in keepers))
