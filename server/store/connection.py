"""Connections that run several prepared statements in one round trip, directly on psycopg's libpq connection.

psycopg's cursors can do the same in pipeline mode, for about five times the CPU. They choose types and plan the
preparation for each statement again. Here statements are prepared once per connection, and parameters are texts.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.adapt import Transformer
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from server.config import Settings
from server.store.engine import APPLICATION, complete
from server.store.hosts import connect_to_any
from server.store.statements import BoundStatement, Statement, load, milliseconds

IDLE_CHECK_SECONDS_MAX = 1.0
"""Longest time to test an idle connection. A call that arrives meanwhile waits for the result."""

ROLLBACK = load("session", "rollback")
IDENTIFY_BACKEND = load("session", "identify_backend")

Row = tuple[Any, ...]
_ROWS, _DONE, _SYNC = ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.PIPELINE_SYNC


class Result(NamedTuple):
    """The rows of a statement, and its command tag."""

    rows: list[Row]
    tag: str


class DatabaseAway(Exception):
    """No database can do now what was asked.

    `rolled_back`: the server itself refused a statement, so its transaction is rolled back. Otherwise the outcome of a
    COMMIT that was sent is unknown.
    """

    def __init__(self, reason: object, *, rolled_back: bool = False) -> None:
        super().__init__(" ".join(str(reason).split()))
        self.rolled_back = rolled_back


# Errors of a server that runs but cannot serve this session. The next connection may reach another server.
_AWAY = (
    errors.ReadOnlySqlTransaction,  # 25006: a standby, or a primary that was demoted
    errors.InvalidSqlStatementName,  # 26000: a pooler gave us another session, without our statements
    errors.DuplicatePreparedStatement,  # 42P05: the same
    errors.FeatureNotSupported,  # 0A000: "cached plan must not change result type", after a migration
)
_OUT_OF_RESOURCES = "53"  # connections, memory, disk
# The session ends, perhaps during its COMMIT. So these say nothing about the transaction.
_OUTCOME_UNKNOWN = ("08", "57P", "40003")


def database_away(error: psycopg.Error) -> DatabaseAway | None:
    """The error as DatabaseAway. None when it is about the statement, such as a lock timeout or a constraint."""
    state = error.sqlstate
    if state is None:
        return None if isinstance(error, psycopg.InternalError) else DatabaseAway(error)
    if state.startswith(_OUTCOME_UNKNOWN):
        return DatabaseAway(error)
    if isinstance(error, _AWAY) or state.startswith(_OUT_OF_RESOURCES):
        return DatabaseAway(error, rolled_back=True)
    return None


async def connect(url: str, settings: Settings, statements: Sequence[Statement]) -> "PipelinedConnection":
    """Open a connection, set the limits of `settings`, and prepare the statements. Raises DatabaseAway.

    Each host of the URL may take `connect_timeout_ms`.
    """
    seconds_max = settings.connect_timeout_ms // 1000
    try:
        connection = PipelinedConnection(await connect_to_any(complete(url, seconds_max), APPLICATION))
    except psycopg.Error as error:
        raise DatabaseAway(error) from None
    try:
        async with connection.at_most(seconds_max):
            await connection.prepare(_session(settings), (ROLLBACK, *statements))
    except BaseException as error:
        connection.cut()
        if isinstance(error, psycopg.Error):
            raise DatabaseAway(error) from None
        raise
    return connection


def _session(settings: Settings) -> dict[str, str]:
    """The session's settings. The database may have other defaults, and an order must not depend on them."""
    return {
        # An order must see what the transaction that it waited for has written, or fail with a serialization failure.
        "default_transaction_isolation": settings.isolation,
        "statement_timeout": milliseconds(settings.transaction_max_ms),
        "idle_in_transaction_session_timeout": milliseconds(settings.idle_in_transaction_timeout_ms),
        # Every statement reads a few rows of a large table by key, so an index nested loop is always right.
        # The planner might not know it: the tables may have been empty when a plan was made.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        # The planner takes a search for expensive, but compiling it would take longer than to run it.
        "jit": "off",
        # One generic plan serves all batches. Planning for each batch again would only cost time.
        "plan_cache_mode": "force_generic_plan",
        "timezone": "UTC",
        # A warning is the only sign of a COMMIT that no standby confirmed.
        "client_min_messages": "warning",
    }


class ReconnectingConnection:
    """One connection, opened when it is first needed, and opened again after it was lost."""

    def __init__(self, url: str, settings: Settings, statements: Sequence[Statement]) -> None:
        self._url = url
        self._settings = settings
        self._statements = statements
        self._open: PipelinedConnection | None = None
        self._opening: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._open is not None and not self._open.is_broken

    async def get(self) -> "PipelinedConnection":
        """The open connection. Raises DatabaseAway."""
        if not self.is_open:
            if self._opening is None:
                self._opening = asyncio.create_task(self._connect())
                self._opening.add_done_callback(_retrieve_error)
            # Shielded: the first hosts of the URL may be silent for longer than any single caller waits.
            await asyncio.shield(self._opening)
        assert self._open  # noqa: S101
        return self._open

    async def close(self) -> None:
        if self._opening:
            self._opening.cancel()
            await asyncio.wait({self._opening})
        if self._open:
            await self._open.close()

    async def _connect(self) -> None:
        try:
            self._open = await connect(self._url, self._settings, self._statements)
        finally:
            self._opening = None


def _retrieve_error(task: "asyncio.Task[None]") -> None:
    # Perhaps no caller waits for it any more. asyncio would log an error that is never retrieved.
    if not task.cancelled():
        task.exception()


class PipelinedConnection:
    """A connection in autocommit mode with prepared statements. Made by `connect`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._transformer = Transformer(connection)  # one for all results, so that it finds the loaders once
        self._warned = False
        connection.add_notice_handler(self._on_notice)
        self.backend = ""
        """Identifies the PostgreSQL backend: its process id and its start time. No other backend ever has the same."""
        self.on_round_trip: Callable[[int, Iterable[bytes]], None] | None = None
        """Told of each round trip: when it began, in nanoseconds since 1970, and the names of its statements."""

    async def prepare(self, session: dict[str, str], statements: Sequence[Statement]) -> None:
        """Set the session's settings and prepare the statements, in one round trip."""
        self._pgconn.enter_pipeline_mode()
        for name, value in session.items():
            self._pgconn.send_query_params(b"SELECT set_config($1, $2, false)", [name.encode(), value.encode()])
        self._pgconn.send_query_params(IDENTIFY_BACKEND.sql, [])
        for statement in statements:
            self._pgconn.send_prepare(statement.name, statement.sql)
        results = await self._results(len(session) + 1 + len(statements))
        self.backend = str(self._read(results[len(session)]).rows[0][0])

    @asynccontextmanager
    async def at_most(self, seconds: float) -> AsyncIterator[None]:
        """A context that ends in time. Raises DatabaseAway when the time is over."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            self.cut()  # a frozen server answers nothing, not even a cancel request
            raise DatabaseAway(f"no answer within {seconds:.1f} s") from None

    @property
    def is_broken(self) -> bool:
        """Whether the connection is lost or closed."""
        return self._connection.closed

    @property
    def backend_pid(self) -> int:
        """The process id of the PostgreSQL backend."""
        return self._pgconn.backend_pid

    @property
    def was_warned(self) -> bool:
        """Whether the server sent a warning with the results of the last `run`."""
        return self._warned

    def cut(self) -> None:
        """Close the socket at once. A `run` that waits on it gets an OperationalError."""
        self._pgconn.finish()

    async def close(self) -> None:
        await self._connection.close()

    async def rollback(self) -> None:
        """End the transaction that failed."""
        await self.run(ROLLBACK())

    async def run(self, *statements: BoundStatement) -> list[Result]:
        """Execute the statements in one round trip.

        Raises the psycopg.Error of the first that fails. Those after it were not executed. Raises DatabaseAway when
        the connection is lost, or leads to a server that cannot serve it.
        """
        self._warned = False
        started = time.time_ns() if self.on_round_trip else 0
        try:
            self._pgconn.enter_pipeline_mode()
            for statement in statements:
                self._pgconn.send_query_prepared(statement.name, statement.parameters)
            return [self._read(result) for result in await self._results(len(statements))]
        except psycopg.Error as error:
            raise (database_away(error) or error) from None
        finally:
            if self.on_round_trip:
                self.on_round_trip(started, [statement.name for statement in statements])

    def _on_notice(self, notice: errors.Diagnostic) -> None:
        self._warned = self._warned or notice.severity_nonlocalized == "WARNING"

    def _read(self, result: PGresult) -> Result:
        tag = (result.command_status or b"").decode()
        if not result.ntuples:
            return Result([], tag)
        self._transformer.set_pgresult(result)
        return Result(self._transformer.load_rows(0, result.ntuples, tuple), tag)

    async def _results(self, count: int) -> list[PGresult]:
        """The results of what was sent, in its order. After it the connection has left pipeline mode."""
        self._pgconn.pipeline_sync()
        await self._flush()
        results: list[PGresult] = []
        while True:
            result = await self._next_result()
            if result is None:  # the end of one statement's results
                if self.is_broken:  # libpq received what it does not understand, and returns None for ever
                    raise psycopg.OperationalError("the connection is lost")
                continue
            if result.status == _SYNC:
                break
            results.append(result)
        self._pgconn.exit_pipeline_mode()
        for result in results:
            if result.status not in (_ROWS, _DONE):
                raise _error(result)
        if len(results) != count:
            raise psycopg.InternalError(f"{len(results)} results of {count} statements")
        return results

    async def _flush(self) -> None:
        """Send everything."""
        while self._pgconn.flush():
            await self._wait_for_socket(writing=True)
            # The server stops reading while its own results are not read. Both sides would wait for each other.
            self._pgconn.consume_input()

    async def _next_result(self) -> PGresult | None:
        while self._pgconn.is_busy():
            await self._wait_for_socket()
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    async def _wait_for_socket(self, *, writing: bool = False) -> None:
        """Return when the socket can be read, or written."""
        loop, socket = asyncio.get_running_loop(), self._pgconn.socket
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(socket, _set, ready)
        if writing:
            loop.add_writer(socket, _set, ready)
        try:
            await ready
        finally:
            loop.remove_reader(socket)
            if writing:
                loop.remove_writer(socket)


def _set(ready: "asyncio.Future[None]") -> None:
    if not ready.done():  # both callbacks may run in the same turn of the loop
        ready.set_result(None)


def _error(result: PGresult) -> psycopg.Error:
    sqlstate = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    try:
        error = errors.lookup(sqlstate)
    except KeyError:
        error = psycopg.OperationalError
    return error(result.get_error_message())
