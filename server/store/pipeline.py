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
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.sql import ClauseElement

from server.config import Settings
from server.store.engine import APPLICATION

Row = tuple[Any, ...]
_ROWS, _DONE, _SYNC = ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.PIPELINE_SYNC


class Statement:
    """One statement under a name of its own: SQL, or what SQLAlchemy compiles, once. Called with its parameters, as
    PostgreSQL reads them in text, it makes a call for `PipelinedConnection.run`."""

    def __init__(self, name: str, sql: ClauseElement | str) -> None:
        self.name = name.encode()
        self._parameters: Sequence[str] = ()
        if not isinstance(sql, str):
            # The dialect only for its way to write parameters: $1, $2, … is what PostgreSQL itself reads.
            compiled: Any = sql.compile(dialect=PGDialect_asyncpg())  # type: ignore[no-untyped-call]
            self._parameters = compiled.positiontup or ()
            sql = str(compiled)
        self.sql = sql.encode()

    def __call__(self, **parameters: str) -> "Call":
        return Call(self.name, [parameters[name].encode() for name in self._parameters])


ROLLBACK = Statement("rollback", "ROLLBACK")


class Call(NamedTuple):
    """A statement's name and its parameters."""

    name: bytes
    parameters: list[bytes]


class Result(NamedTuple):
    """The rows of a statement, and its command tag."""

    rows: list[Row]
    tag: str


async def connect(url: str, settings: Settings, statements: Sequence[Statement]) -> "PipelinedConnection":
    """A connection with these statements prepared, and the limits of `settings`. Raises psycopg.Error, TimeoutError."""
    connection = PipelinedConnection(
        await AsyncConnection.connect(
            url, autocommit=True, connect_timeout=settings.connect_timeout_seconds, application_name=APPLICATION
        )
    )
    limits = {
        "statement_timeout": f"{int(settings.transaction_seconds_max * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{settings.idle_in_transaction_timeout_ms}ms",
        # Only what is named is wanted, a few rows of ever so many, by their keys: no other plan is ever right, whatever
        # the tables held when it was made. And one plan for all batches: most would be planned anew for each otherwise.
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "plan_cache_mode": "force_generic_plan",
        "timezone": "UTC",
    }
    async with connection.at_most(settings.connect_timeout_seconds):
        await connection.prepare(limits, (ROLLBACK, *statements))
    return connection


class PipelinedConnection:
    """A connection in autocommit mode with its statements prepared. Made by `connect`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn

    async def prepare(self, limits: dict[str, str], statements: Sequence[Statement]) -> None:
        """In one round trip: the session's settings, and the statements."""
        self._pgconn.enter_pipeline_mode()
        for name, value in limits.items():
            self._pgconn.send_query_params(b"SELECT set_config($1, $2, false)", [name.encode(), value.encode()])
        for statement in statements:
            self._pgconn.send_prepare(statement.name, statement.sql)
        await self._results(len(limits) + len(statements))

    @asynccontextmanager
    async def at_most(self, seconds: float) -> AsyncIterator[None]:
        """What is done here ends in time, in TimeoutError if need be: a frozen server answers nothing, not even a
        cancellation, so giving up means closing the socket."""
        cutting = asyncio.get_running_loop().call_later(seconds, self.cut)
        try:
            async with asyncio.timeout(seconds):
                yield
        finally:
            cutting.cancel()

    @property
    def is_broken(self) -> bool:
        """Whether the connection is lost or closed."""
        return self._connection.closed

    @property
    def backend_pid(self) -> int:
        """The server's process for this connection."""
        return self._pgconn.backend_pid

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

        Raises the psycopg.Error of the first that fails; those after it were not executed. An error without a
        SQLSTATE means that the connection was lost and nobody knows how far it came.
        """
        self._pgconn.enter_pipeline_mode()
        for call in calls:
            self._pgconn.send_query_prepared(call.name, call.parameters)
        return [self._read(result) for result in await self._results(len(calls))]

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
