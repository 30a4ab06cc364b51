"""The SQLAlchemy engine of the admin commands. Orders and look-ups have connections of their own kind (pipeline.py)."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg.errors import DeadlockDetected, SerializationFailure
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from server.errors import OperatorError

APPLICATION = "ordernumbers"
TRIES_MAX = 5
PAUSE_SECONDS_MAX = 0.5

# What the database sets for everyone is not always what we need: a transaction must see what the one that it waited
# for has written, and what is acknowledged must be on disk.
SESSION = """
    SELECT pg_backend_pid(), set_config('default_transaction_isolation', 'read committed', false),
      CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
"""
SHARED = (
    "DATABASE_URL leads to a connection pooler that gives each transaction another connection; "
    "set it to session mode (PgBouncer: pool_mode = session), or connect to PostgreSQL itself"
)
POOLER_LOOKS = 3

T = TypeVar("T")


def admin_engine(url: str, *, connect_timeout_seconds: int = 3) -> Engine:
    """An engine for short-lived admin work. `url` is libpq's own form, several hosts included.

    Connecting raises OperatorError when a pooler shares out the connection between transactions.
    """

    def open_connection() -> psycopg.Connection:
        return psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=connect_timeout_seconds,
            application_name=APPLICATION,
            client_encoding="UTF8",  # or texts of a database in SQL_ASCII come as bytes
        )

    def connect() -> psycopg.Connection:
        connection = open_connection()
        try:
            _set_up(connection, open_connection)
        except BaseException:
            connection.close()
            raise
        return connection

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)


def in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    """What `work` returns, once its transaction has been committed. It is run again after a deadlock."""

    def once() -> T:
        with engine.begin() as connection:
            return work(connection)

    return again(once)


def again(work: Callable[[], T]) -> T:
    """Do the work, and do it again a few times when PostgreSQL could not order it among other transactions."""
    for _ in range(TRIES_MAX - 1):
        try:
            return work()
        except DBAPIError as error:
            if not isinstance(error.orig, SerializationFailure | DeadlockDetected):
                raise
        time.sleep(random.uniform(0, PAUSE_SECONDS_MAX))  # noqa: S311  two that met shall not meet again
    return work()


def _set_up(connection: psycopg.Connection, open_another: Callable[[], psycopg.Connection]) -> None:
    (pid, *_), *_ = connection.execute(SESSION).fetchall()
    if pid != connection.info.backend_pid:  # a pooler stands between: what it was told of at the start is its own
        with open_another() as other:
            _refuse_sharing(connection, other, pid)
    connection.autocommit = False


def _refuse_sharing(connection: psycopg.Connection, other: psycopg.Connection, pid: int) -> None:
    """Raises OperatorError if the two share a server process, or the first gets another one during a transaction of the
    second. Neither happens in session mode. A busy pooler may hide it once, but hardly each time.
    """
    other.autocommit = False
    for _ in range(POOLER_LOOKS):
        if _pid(other) == pid or _pid(connection) != pid:
            raise OperatorError(SHARED)
        other.rollback()


def _pid(connection: psycopg.Connection) -> int:
    ((pid,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    return int(pid)
