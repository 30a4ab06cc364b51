"""Writes that are tried alone, one per transaction: all but orders, and the orders that no batch could decide.

A batch cannot decide an order of rows that another transaction keeps locked, or one with an unknown outcome. A failed
batch decides none. Each write is tried until its deadline. An unknown outcome is settled by running it again.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from server import metrics
from server.config import Settings
from server.errors import Code, Refusal
from server.pending import PendingWrite, Queue, Stage
from server.rules.values import Retry
from server.store.conflicts import CONFLICTS
from server.store.connection import DatabaseAway, PipelinedConnection
from server.store.transaction import InProgress, Limits, OutcomeUnknown
from server.write_connection import LOCKED_OUT, WriteConnection

log = logging.getLogger(__name__)

AWAY_MAX = 2
"""After so many attempts that found no database, a write is refused."""
LOCK_SECONDS_MIN = 0.025
PAUSE_SECONDS_MAX = 0.1

CarryOut = Callable[[PipelinedConnection, Any, Limits, Any], Awaitable[Any]]
"""Carries out a write in one transaction: its connection, the write, its limits, and what was sent earlier."""


class OneByOne:
    """Connections that try each write alone, until it is decided or its deadline has passed.

    Organizations take turns. Writes that name the same number are not tried at the same time. Otherwise one locked
    number would block every connection, once for each write of it.
    """

    def __init__(
        self, settings: Settings, connections: Sequence[WriteConnection], carry_out: CarryOut, name: str
    ) -> None:
        """`name` is the one of its queue, as the metrics name it."""
        self.connections = connections
        self._carry_out = carry_out
        self._lock_seconds_max = settings.lock_timeout_ms / 1000
        self._queue = Queue(name)
        self._pausing = 0
        self._numbers: set[str] = set()  # of the writes that are being tried
        self._closing = False
        self._changed = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(connection)) for connection in connections]

    @property
    def is_closing(self) -> bool:
        """Whether no new write should come."""
        return self._closing

    @property
    def waiting(self) -> dict[str, int]:
        """The length of its queue, by the queue's name."""
        return {self._queue.name: self._queue.length}

    def put(self, pending: PendingWrite) -> None:
        self._queue.put(pending)
        self._changed.set()

    async def close(self) -> None:
        """Finish what is queued, then close the connections."""
        self._closing = True
        self._changed.set()
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(connection.close() for connection in self.connections))

    async def _run(self, connection: WriteConnection) -> None:
        while pending := await self._next():
            self._numbers.update(pending.write.numbers)
            decision = await self._decision(connection, pending)
            self._numbers.difference_update(pending.write.numbers)
            self._changed.set()
            if isinstance(decision, Retry):
                self._pausing += 1
                metrics.RETRIES[self._queue.name,].value += 1
                pause_seconds = random.uniform(0, PAUSE_SECONDS_MAX)  # noqa: S311
                asyncio.get_running_loop().call_later(pause_seconds, self._put_again, pending)
            else:
                pending.end(decision)

    def _put_again(self, pending: PendingWrite) -> None:
        self._pausing -= 1
        self.put(pending)

    async def _next(self) -> PendingWrite | None:
        """The next write to try. None when no more will come."""
        while True:
            for pending in self._queue.take_unwanted():
                pending.end()
            if pending_or_none := self._queue.take_without(self._numbers):
                return pending_or_none
            if self._closing and not self._queue.length and not self._pausing:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def _decision(self, connection: WriteConnection, pending: PendingWrite) -> Any:
        """The decision on a write, which is Retry if it must be tried again."""
        lock_seconds = min(LOCK_SECONDS_MIN * 2 ** min(pending.tries, 10), self._lock_seconds_max)
        pending.tries += 1
        try:
            async with connection.attempt([pending], lock_seconds) as (open_, running, limits):
                if not running:
                    return Retry()
                decision = await self._carry_out(open_, pending.write, limits, pending.sent)
            if isinstance(decision, Retry):
                pending.note_rollback()
            return decision
        except InProgress:
            pending.note_rollback(Stage.KEY_IN_USE)
        except (OutcomeUnknown, *CONFLICTS, *LOCKED_OUT):
            pass
        except DatabaseAway as error:
            pending.times_away += 1
            if pending.sent is None and pending.times_away >= AWAY_MAX:
                log.warning("a write could not be carried out: %s", error)
                return Refusal(Code.UNAVAILABLE)
        except Exception:
            log.exception("a write failed")
            # Something of it may have been sent by an earlier attempt.
            return Refusal(Code.INTERNAL if pending.sent is None else Code.TIMEOUT)
        return Retry()
