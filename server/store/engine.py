"""The SQLAlchemy engine of the admin commands. The server's own connections are in connection.py."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Connection, CursorResult, Engine, create_engine, text
from sqlalchemy.pool import NullPool

from server.config import settings
from server.errors import OperatorError
from server.store.conflicts import run_with_retries

APPLICATION = "ordernumbers"
CONNECT_TIMEOUT_SECONDS = 3
"""Per host of the URL."""

# The defaults of the database may not be safe for us. A transaction must see what another one wrote that it waited for,
# or fail with a serialization failure. A standby has no SERIALIZABLE, and only reads.
# What a command reports as done must be on disk.
SESSION_SETTINGS = """
    SELECT pg_backend_pid(), set_config(
        'default_transaction_isolation', CASE WHEN pg_is_in_recovery() THEN 'read committed' ELSE %s END, false
      ),
      CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END
"""
POOLER_NOT_IN_SESSION_MODE = (
    "DATABASE_URL points to a connection pooler that changes the connection between transactions: "
    "set the pooler to session mode (PgBouncer: pool_mode = session), or connect to PostgreSQL directly"
)
POOLER_CHECKS = 3

T = TypeVar("T")
Rows = CursorResult[*tuple[Any, ...]]


def complete(url: str, connect_timeout_seconds: int, *, needs_primary: bool = True) -> str:
    """The URL, completed with our defaults for the options of libpq that it does not set."""
    given = conninfo_to_dict(url)
    ours: dict[str, str | int] = {
        "connect_timeout": connect_timeout_seconds,
        # Of several hosts libpq takes the first that accepts writes, which after a failover is the new primary.
        "target_session_attrs": "read-write" if needs_primary else "any",
        # A host that was cut off sends nothing. These detect it on an idle connection and on a busy one.
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": connect_timeout_seconds * 1000,
    }
    return make_conninfo(url, **{name: value for name, value in ours.items() if name not in given})


def admin_engine(url: str) -> Engine:
    """Return an engine for short admin work. `url` has libpq's format and may name several hosts.

    Connecting raises OperatorError if a pooler uses another connection for each transaction.
    """

    # `ordernumbers check` and other reads may run on a standby, if that is the only host.
    has_several_hosts = "," in str(conninfo_to_dict(url).get("host", ""))

    def open_connection() -> psycopg.Connection:
        return psycopg.connect(
            complete(url, CONNECT_TIMEOUT_SECONDS, needs_primary=has_several_hosts),
            autocommit=True,
            application_name=APPLICATION,
            client_encoding="UTF8",  # otherwise a database in SQL_ASCII returns text as bytes
        )

    def connect() -> psycopg.Connection:
        connection = open_connection()
        try:
            _set_up(connection, open_connection)
        except BaseException:
            connection.close()
            raise
        return connection

    # Admin work is rare, so it keeps no connection open between two uses.
    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)


def in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Run `work` in a transaction, commit, and return its result. After a conflict it runs again."""

    def run_once() -> T:
        with engine.begin() as connection:
            return work(connection)

    return run_with_retries(run_once)


def execute_alone(connection: Connection, sql: str, values: Mapping[str, Any] | None = None) -> Rows:
    """Execute a statement that is a transaction of its own. After a conflict it runs again."""
    return run_with_retries(lambda: connection.execute(text(sql), values))


def _set_up(connection: psycopg.Connection, open_another: Callable[[], psycopg.Connection]) -> None:
    (pid, *_), *_ = connection.execute(SESSION_SETTINGS, [settings().isolation]).fetchall()
    # A pooler reports a process id of its own when we connect, so a difference shows that there is one.
    if pid != connection.info.backend_pid:
        with open_another() as other:
            _require_session_mode(connection, other, pid)
    connection.autocommit = False


def _require_session_mode(connection: psycopg.Connection, other: psycopg.Connection, pid: int) -> None:
    """Raise OperatorError if the pooler does not keep one PostgreSQL backend per connection.

    That is so if both connections share a process. It is also so if `connection` gets another process while `other`
    is in a transaction. Neither happens in session mode.
    """
    other.autocommit = False
    # A busy pooler may return the same process by chance. It is unlikely to do so every time.
    for _ in range(POOLER_CHECKS):
        if _pid(other) == pid or _pid(connection) != pid:
            raise OperatorError(POOLER_NOT_IN_SESSION_MODE)
        other.rollback()


def _pid(connection: psycopg.Connection) -> int:
    ((pid,),) = connection.execute("SELECT pg_backend_pid()").fetchall()
    return int(pid)
