"""A connection for orders: one transaction at a time, and what is left behind when its outcome is unknown."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import psycopg
from psycopg import errors

from server.config import Settings
from server.pending import CERTAIN_SECONDS, PendingOrder
from server.rules.values import Placed
from server.store.connection import (
    IDLE_CHECK_SECONDS_MAX,
    RUNNING,
    DatabaseAway,
    PipelinedConnection,
    ReconnectingConnection,
)
from server.store.orders import STATEMENTS, InProgress, Limits, OutcomeUnknown, place

log = logging.getLogger(__name__)

# Another transaction was in the way. Ours left nothing behind and may be run again, whole.
IN_THE_WAY = (errors.SerializationFailure, errors.DeadlockDetected)
# The same, but it may stay there for long.
HELD_UP = (errors.LockNotAvailable, errors.QueryCanceled)
# After these a connection is as good as before, once it is rolled back. After any other error it is closed.
HARMLESS = (*IN_THE_WAY, *HELD_UP, InProgress, psycopg.IntegrityError)
SETTLE_SECONDS = 0.5
"""How long after `statement_timeout` we wait before closing the socket."""


class Unsettled:
    """Server processes that were left behind with a COMMIT, and may still be at it, holding its locks.

    A COMMIT that waits for a standby does not end with its connection.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._backends: set[str] = set()

    @property
    def is_full(self) -> bool:
        return len(self._backends) >= self._count_max

    def add(self, backend: str) -> None:
        self._backends.add(backend)

    async def look(self, connection: PipelinedConnection) -> None:
        """Forget those that have ended. Raises psycopg.Error, DatabaseAway."""
        if self._backends:
            asked = set(self._backends)
            (running,) = await connection.run(RUNNING(backends=_array(asked)))
            self._backends -= asked - {backend for (backend,) in running.rows}


def _array(texts: set[str]) -> str:
    return "{" + ",".join(f'"{text}"' for text in texts) + "}"


class OrderConnection:
    """One connection for orders. One at a time uses it."""

    def __init__(self, settings: Settings, database_url: str, unsettled: Unsettled) -> None:
        self._settings = settings
        self._connection = ReconnectingConnection(database_url, settings, (*STATEMENTS, RUNNING))
        self._unsettled = unsettled
        self._free = asyncio.Lock()

    @asynccontextmanager
    async def attempt(
        self, batch: Sequence[PendingOrder], lock_seconds: float
    ) -> AsyncIterator[tuple[PipelinedConnection, Sequence[PendingOrder], Limits]]:
        """One transaction for those orders of a batch that are still wanted when the connection is open.

        It is over before their last deadline. After a failure nothing is left of it, unless it is OutcomeUnknown.
        Raises psycopg.Error, DatabaseAway.
        """
        async with self._free:
            connection = await self._connection.get()  # may take seconds
            running = [pending for pending in batch if pending.begin()]
            limits = self._limits(running, lock_seconds)
            try:
                async with connection.at_most(limits.statement_seconds + SETTLE_SECONDS):
                    yield connection, running, limits
            except BaseException as error:
                if isinstance(error, OutcomeUnknown):
                    self._note_unknown(connection, running, error)
                for pending in running:
                    pending.undone()
                await self._recover(connection, error)
                raise

    async def check(self, seconds_max: float) -> None:
        """An order's transaction without an order. Raises psycopg.Error, DatabaseAway."""
        try:
            async with asyncio.timeout(seconds_max), self.attempt([], 0) as (connection, _, limits):
                await place(connection, [], _no_answer, limits)
                await self._unsettled.look(connection)
        except OutcomeUnknown as error:
            raise DatabaseAway(f"COMMIT failed: {error.__cause__!r}") from None
        except TimeoutError:
            raise DatabaseAway(f"it does not answer within {seconds_max:g} s") from None

    async def check_if_idle(self) -> None:
        """Close the connection if it is open, not in use, and lost."""
        if self._connection.is_open and not self._free.locked():
            with suppress(psycopg.Error, DatabaseAway):
                await self.check(IDLE_CHECK_SECONDS_MAX)

    async def close(self) -> None:
        await self._connection.close()

    def _limits(self, running: Sequence[PendingOrder], lock_seconds: float) -> Limits:
        seconds = self._settings.transaction_max_ms / 1000
        if running:
            last = max(pending.deadline for pending in running)
            seconds = max(0.0, min(seconds, last - asyncio.get_running_loop().time() - CERTAIN_SECONDS))
        return Limits(min(lock_seconds, seconds), seconds)

    def _note_unknown(
        self, connection: PipelinedConnection, running: Sequence[PendingOrder], error: OutcomeUnknown
    ) -> None:
        log.warning("the outcome of %d orders is unknown: %r", len(error.placed), error.__cause__)
        self._unsettled.add(connection.backend)
        sent = {placed.order.id: placed for placed in error.placed}
        for pending in running:
            if placed := sent.get(pending.order.id):
                pending.unconfirmed(placed)

    async def _recover(self, connection: PipelinedConnection, error: BaseException) -> None:
        """Roll back, or do without this connection from now on."""
        if isinstance(error, HARMLESS):
            with suppress(psycopg.Error, DatabaseAway):
                async with connection.at_most(self._settings.connect_timeout_ms / 1000):
                    await connection.rollback()
                return
        await connection.close()


def _no_answer(placed: Placed) -> bytes:
    raise AssertionError(placed)
