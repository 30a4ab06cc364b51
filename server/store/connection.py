"""Prepared statements, several in one round trip, straight on psycopg's libpq connection.

psycopg's cursors can do the same (its pipeline mode), for about five times the CPU: they choose types and plan
preparation anew for each statement. Here statements are prepared when the connection opens, and parameters are texts.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.sql import ClauseElement

from server.config import Settings
from server.store.engine import APPLICATION

IDLE_CHECK_SECONDS_MAX = 1.0
"""How long a connection that nobody uses may take to show that it still works. A call that comes meanwhile waits."""

Row = tuple[Any, ...]
_ROWS, _DONE, _SYNC = ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.PIPELINE_SYNC


class Statement:
    """One statement under a name of its own: SQL, or what SQLAlchemy compiles, once. Called with its parameters, as
    PostgreSQL reads them in text, it makes a call for `PipelinedConnection.run`."""

    def __init__(self, name: str, sql: ClauseElement | str, parameters: Sequence[str] = ()) -> None:
        self.name = name.encode()
        self._parameters = parameters
        if not isinstance(sql, str):
            # The dialect only for its way to write parameters: $1, $2, … is what PostgreSQL itself reads.
            compiled: Any = sql.compile(dialect=PGDialect_asyncpg())  # type: ignore[no-untyped-call]
            self._parameters = compiled.positiontup or ()
            sql = str(compiled)
        self.sql = sql.encode()

    def __call__(self, **parameters: str) -> "Call":
        return Call(self.name, [parameters[name].encode() for name in self._parameters])


ROLLBACK = Statement("rollback", "ROLLBACK")
_BACKEND = b"SELECT pid || ' ' || backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
RUNNING = Statement(
    "running",
    """
    SELECT pid || ' ' || backend_start
    FROM pg_stat_activity
    WHERE pid || ' ' || backend_start = ANY ($1::text[])
      AND state IS DISTINCT FROM 'idle'
    """,
    ("backends",),
)
"""Which of the given server processes (see `PipelinedConnection.backend`) still run a transaction. One that is idle has
ended it, and only does not know yet that we are gone."""


class Call(NamedTuple):
    """A statement's name and its parameters."""

    name: bytes
    parameters: list[bytes]


class Result(NamedTuple):
    """The rows of a statement, and its command tag."""

    rows: list[Row]
    tag: str


class DatabaseAway(Exception):
    """There is no database now that can do what was asked.

    `answered`: the server itself refused a statement, so the transaction is rolled back. Otherwise nobody knows what
    became of a COMMIT that was sent.
    """

    def __init__(self, reason: object, *, answered: bool = False) -> None:
        super().__init__(" ".join(str(reason).split()))
        self.answered = answered


# What a server answers that runs and cannot serve this session. The next connection may reach another one.
_AWAY = (
    errors.ReadOnlySqlTransaction,  # 25006: a standby, or a primary that was demoted
    errors.InvalidSqlStatementName,  # 26000: a pooler has given us another session, without our statements
    errors.DuplicatePreparedStatement,  # 42P05: the same
    errors.FeatureNotSupported,  # 0A000: "cached plan must not change result type", after a migration
)
_SHORT_OF = "53"  # connections, memory, disk
_UNKNOWN = ("08", "57P", "40003")  # the session ends, perhaps while it commits: nothing is known of that


def _away(error: psycopg.Error) -> DatabaseAway | None:
    state = error.sqlstate
    if state is None:
        return None if isinstance(error, psycopg.InternalError) else DatabaseAway(error)
    if state.startswith(_UNKNOWN):
        return DatabaseAway(error)
    return DatabaseAway(error, answered=True) if isinstance(error, _AWAY) or state.startswith(_SHORT_OF) else None


async def connect(url: str, settings: Settings, statements: Sequence[Statement]) -> "PipelinedConnection":
    """A connection with these statements prepared, and the limits of `settings`. Raises DatabaseAway.

    Each host of the URL may take `connect_timeout_ms`.
    """
    try:
        connection = PipelinedConnection(
            await AsyncConnection.connect(_conninfo(url, settings), autocommit=True, application_name=APPLICATION)
        )
    except psycopg.Error as error:
        raise DatabaseAway(error) from None
    try:
        async with connection.at_most(settings.connect_timeout_ms / 1000):
            await connection.prepare(_session(settings), (ROLLBACK, *statements))
    except BaseException as error:
        connection.cut()
        if isinstance(error, psycopg.Error):
            raise DatabaseAway(error) from None
        raise
    return connection


def _conninfo(url: str, settings: Settings) -> str:
    """The URL, and what it leaves open."""
    ours: dict[str, str | int] = {
        "connect_timeout": settings.connect_timeout_ms // 1000,
        "target_session_attrs": "read-write",
        # A host that was cut off sends nothing. These notice it, on an idle connection and on a busy one.
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": settings.connect_timeout_ms,
    }
    given = conninfo_to_dict(url)
    return make_conninfo(url, **{name: value for name, value in ours.items() if name not in given})


def _session(settings: Settings) -> dict[str, str]:
    """The settings of a session. The database may have other defaults, which an order must not depend on."""
    return {
        "statement_timeout": f"{settings.transaction_max_ms}ms",
        "idle_in_transaction_session_timeout": f"{settings.idle_in_transaction_timeout_ms}ms",
        # Every statement reads a few rows of a large table by key, so an index nested loop is always right. The tables
        # may have been empty when a plan was made. One generic plan serves all batches.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "plan_cache_mode": "force_generic_plan",
        "timezone": "UTC",
        # A COMMIT that a standby did not confirm is reported as a warning and in no other way.
        "client_min_messages": "warning",
    }


class ReconnectingConnection:
    """One connection, opened when it is first needed and again after it was lost."""

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
        """The open connection. Raises DatabaseAway.

        It is opened in a task of its own: a caller that gives up does not end it. The first hosts of the URL may be
        silent for longer than any single caller waits.
        """
        if not self.is_open:
            if self._opening is None:
                self._opening = asyncio.create_task(self._connect())
                self._opening.add_done_callback(_look_at)
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


def _look_at(task: "asyncio.Task[None]") -> None:
    """At its error, which perhaps nobody waits for any more."""
    if not task.cancelled():
        task.exception()


class PipelinedConnection:
    """A connection in autocommit mode with its statements prepared. Made by `connect`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._warned = False
        connection.add_notice_handler(self._on_notice)
        self.backend = ""
        """Which server process this is, different from every other one that ever ran. See `RUNNING`."""

    async def prepare(self, session: dict[str, str], statements: Sequence[Statement]) -> None:
        """In one round trip: the session's settings, and the statements."""
        self._pgconn.enter_pipeline_mode()
        for name, value in session.items():
            self._pgconn.send_query_params(b"SELECT set_config($1, $2, false)", [name.encode(), value.encode()])
        self._pgconn.send_query_params(_BACKEND, [])
        for statement in statements:
            self._pgconn.send_prepare(statement.name, statement.sql)
        results = await self._results(len(session) + 1 + len(statements))
        self.backend = str(self._read(results[len(session)]).rows[0][0])

    @asynccontextmanager
    async def at_most(self, seconds: float) -> AsyncIterator[None]:
        """What is done here ends in time, in DatabaseAway if need be: a frozen server answers nothing, not even a
        cancellation, so giving up means closing the socket."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            self.cut()
            raise DatabaseAway(f"no answer within {seconds:.1f} s") from None

    @property
    def is_broken(self) -> bool:
        """Whether the connection is lost or closed."""
        return self._connection.closed

    @property
    def backend_pid(self) -> int:
        """The server's process for this connection."""
        return self._pgconn.backend_pid

    @property
    def was_warned(self) -> bool:
        """Whether the server sent a warning with the results of the last `run`."""
        return self._warned

    def cut(self) -> None:
        """Close the socket at once, saying nothing: what waits for an answer here gets an OperationalError."""
        self._pgconn.finish()

    async def close(self) -> None:
        await self._connection.close()

    async def rollback(self) -> None:
        """End the transaction that failed. (psycopg's own would deallocate the statements.)"""
        await self.run(ROLLBACK())

    async def run(self, *calls: Call) -> list[Result]:
        """Execute the statements in one round trip.

        Raises the psycopg.Error of the first that fails; those after it were not executed. Raises DatabaseAway when
        the connection was lost, or when it leads to a server that cannot serve it.
        """
        self._warned = False
        try:
            self._pgconn.enter_pipeline_mode()
            for call in calls:
                self._pgconn.send_query_prepared(call.name, call.parameters)
            return [self._read(result) for result in await self._results(len(calls))]
        except psycopg.Error as error:
            raise (_away(error) or error) from None

    def _on_notice(self, notice: errors.Diagnostic) -> None:
        self._warned = self._warned or notice.severity_nonlocalized == "WARNING"

    def _read(self, result: PGresult) -> Result:
        tag = (result.command_status or b"").decode()
        if not result.ntuples:
            return Result([], tag)
        transformer = Transformer(self._connection)
        transformer.set_pgresult(result)
        return Result(transformer.load_rows(0, result.ntuples, tuple), tag)

    async def _results(self, count: int) -> list[PGresult]:
        """The results of what was sent, in its order, after which the connection is out of pipeline mode."""
        self._pgconn.pipeline_sync()
        await self._flushed()
        results: list[PGresult] = []
        while True:
            result = await self._next_result()
            if result is None:  # the end of one statement's results
                if self.is_broken:  # libpq has read what it does not understand: no more will come
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

    async def _flushed(self) -> None:
        """Everything is sent. The server may have to be read from meanwhile, or both would wait for each other."""
        while self._pgconn.flush():
            await self._io(writing=True)
            self._pgconn.consume_input()

    async def _next_result(self) -> PGresult | None:
        while self._pgconn.is_busy():
            await self._io()
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    async def _io(self, *, writing: bool = False) -> None:
        """The socket can be read, or written."""
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
    if not ready.done():
        ready.set_result(None)


def _error(result: PGresult) -> psycopg.Error:
    sqlstate = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    try:
        error = errors.lookup(sqlstate)
    except KeyError:
        error = psycopg.OperationalError
    return error(result.get_error_message())
