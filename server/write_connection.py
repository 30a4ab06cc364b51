"""A connection for writes: one transaction at a time, and what remains in the database when an outcome is unknown."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import psycopg
from psycopg import errors

from server import metrics, tracing
from server.config import Settings
from server.pending import SEND_SECONDS_MIN, PendingWrite
from server.store.conflicts import CONFLICTS
from server.store.connection import (
    IDLE_CHECK_SECONDS_MAX,
    DatabaseAway,
    PipelinedConnection,
    ReconnectingConnection,
)
from server.store.statements import Statement, array, load
from server.store.transaction import InProgress, Limits, OutcomeUnknown, check

log = logging.getLogger(__name__)

FIND_RUNNING = load("session", "find_running")

# Another transaction was in the way as well, and it may stay for long.
LOCKED_OUT = (errors.LockNotAvailable, errors.QueryCanceled)
# After these a rollback makes the connection as good as before. After any other error it is closed.
HARMLESS = (*CONFLICTS, *LOCKED_OUT, InProgress, psycopg.IntegrityError)
REASONS = (
    (CONFLICTS, "conflict"),
    ((errors.LockNotAvailable, InProgress), "locked"),
    (errors.QueryCanceled, "timeout"),
    (OutcomeUnknown, "unknown"),
    (DatabaseAway, "connection"),
    (BaseException, "other"),
)
"""Why an attempt failed, as the metrics name it. The first that fits counts."""
CLOSE_AFTER_SECONDS = 0.5
"""How long after statement_timeout we wait before closing the socket."""


class UnsettledCommits:
    """PostgreSQL backends whose COMMIT we no longer wait for. They may still hold its locks.

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
        metrics.UNSETTLED_COMMITS.value = len(self._backends)

    async def forget_ended(self, connection: PipelinedConnection) -> None:
        """Drop those that have ended. Raises psycopg.Error, DatabaseAway."""
        if self._backends:
            asked = set(self._backends)
            (running,) = await connection.run(FIND_RUNNING(backends=array(asked)))
            self._backends -= asked - {backend for (backend,) in running.rows}
            metrics.UNSETTLED_COMMITS.value = len(self._backends)


class WriteConnection:
    """One connection for writes, used by one transaction at a time. It prepares `statements`."""

    def __init__(
        self, settings: Settings, database_url: str, unsettled: UnsettledCommits, statements: Sequence[Statement]
    ) -> None:
        self._settings = settings
        self._connection = ReconnectingConnection(database_url, settings, (*statements, FIND_RUNNING))
        self._unsettled = unsettled
        self._free = asyncio.Lock()

    @asynccontextmanager
    async def attempt(
        self, batch: Sequence[PendingWrite], lock_seconds: float
    ) -> AsyncIterator[tuple[PipelinedConnection, Sequence[PendingWrite], Limits]]:
        """A context for one transaction, with those writes of the batch that should still be sent.

        It ends before their last deadline. An error leaves nothing of it, except OutcomeUnknown. Raises psycopg.Error,
        DatabaseAway.
        """
        async with self._free:
            connection = await self._connection.get()
            # Opening may take seconds. So only now we look who still waits, with no `await` before the sending.
            running = [pending for pending in batch if pending.begin()]
            limits = self._limits(running, lock_seconds)
            failure: BaseException | None = None
            spans = tracing.begin_transaction(pending.write for pending in running)
            connection.on_round_trip = spans.round_trip if spans else None
            try:
                async with connection.at_most(limits.statement_seconds + CLOSE_AFTER_SECONDS):
                    yield connection, running, limits
            except BaseException as error:
                failure = error
                if isinstance(error, OutcomeUnknown):
                    self._note_unknown(connection, running, error)
                for pending in running:
                    pending.note_rollback()
                if running:
                    reason = next(reason for kind, reason in REASONS if isinstance(error, kind))
                    metrics.FAILED_ATTEMPTS[reason,].value += 1
                await self._recover(connection, error)
                raise
            finally:
                connection.on_round_trip = None
                if spans:
                    spans.end(failure)

    async def check(self, seconds_max: float) -> None:
        """Run a transaction without a write. Raises DatabaseAway."""
        try:
            async with asyncio.timeout(seconds_max), self.attempt([], 0) as (connection, _, limits):
                await check(connection, limits)
                await self._unsettled.forget_ended(connection)
        except OutcomeUnknown as error:
            raise DatabaseAway(f"COMMIT failed: {error.__cause__!r}") from None
        except TimeoutError:
            raise DatabaseAway(f"no answer within {seconds_max:g} s") from None
        except psycopg.Error as error:
            raise DatabaseAway(error) from None

    async def check_if_idle(self) -> None:
        """Test the connection if it is open and not in use. Close it if it is lost."""
        if self._connection.is_open and not self._free.locked():
            with suppress(DatabaseAway):
                await self.check(IDLE_CHECK_SECONDS_MAX)

    async def close(self) -> None:
        await self._connection.close()

    def _limits(self, running: Sequence[PendingWrite], lock_seconds: float) -> Limits:
        seconds = self._settings.transaction_max_ms / 1000
        if running:
            last = max(pending.deadline for pending in running)
            seconds = max(0.0, min(seconds, last - asyncio.get_running_loop().time() - SEND_SECONDS_MIN))
        return Limits(min(lock_seconds, seconds), seconds)

    def _note_unknown(
        self, connection: PipelinedConnection, running: Sequence[PendingWrite], error: OutcomeUnknown
    ) -> None:
        log.warning("the outcome of %d writes is unknown: %r", len(error.sent), error.__cause__)
        self._unsettled.add(connection.backend)
        for pending in running:
            if sent := error.sent.get(pending.write.id):
                pending.note_unknown(sent)

    async def _recover(self, connection: PipelinedConnection, error: BaseException) -> None:
        """Roll back, or close the connection so that the next attempt opens another."""
        if isinstance(error, HARMLESS):
            with suppress(psycopg.Error, DatabaseAway):
                async with connection.at_most(self._settings.connect_timeout_ms / 1000):
                    await connection.rollback()
                return
        await connection.close()
