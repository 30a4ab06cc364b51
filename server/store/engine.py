"""Connections to the database: for the admin commands a SQLAlchemy engine, for orders psycopg's own."""

import psycopg
from psycopg import AsyncConnection
from sqlalchemy import Engine, create_engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.pool import NullPool
from sqlalchemy.sql import ClauseElement

from server.config import Settings

APPLICATION = "ordernumbers"


def compiled(statement: ClauseElement) -> str:
    """A statement as psycopg takes it, written by SQLAlchemy once."""
    return str(statement.compile(dialect=PGDialect_psycopg()))  # type: ignore[no-untyped-call]


def admin_engine(url: str, *, connect_timeout_seconds: int = 3) -> Engine:
    """An engine for short-lived admin work. `url` is libpq's own form, several hosts included."""

    def connect() -> psycopg.Connection:
        return psycopg.connect(url, connect_timeout=connect_timeout_seconds, application_name=APPLICATION)

    return create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)


async def connect_for_orders(url: str, settings: Settings) -> AsyncConnection:
    """A connection that carries out orders: in autocommit mode (the order transaction says BEGIN and COMMIT itself),
    with the limits of `settings`. Raises psycopg.OperationalError."""
    connection = await AsyncConnection.connect(
        url,
        autocommit=True,
        connect_timeout=settings.connect_timeout_seconds,
        application_name=APPLICATION,
        prepare_threshold=0,
    )
    limits = {
        "lock_timeout": f"{settings.lock_timeout_ms}ms",
        "statement_timeout": f"{int(settings.transaction_seconds_max * 1000)}ms",
        "idle_in_transaction_session_timeout": f"{settings.idle_in_transaction_timeout_ms}ms",
        # A plan made while a table was empty would scan it whole for ever after.
        "enable_seqscan": "off",
        "timezone": "UTC",
    }
    for name, value in limits.items():
        await connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    return connection
