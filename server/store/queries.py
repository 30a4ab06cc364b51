"""Reads outside the order transaction: the key of a call, and whether the database answers."""

from typing import Any, NamedTuple
from uuid import UUID

from psycopg_pool import AsyncConnectionPool
from sqlalchemy import LargeBinary, bindparam, func, or_, select

from server.config import Settings
from server.store.engine import APPLICATION, compiled
from server.store.tables import api_key

_k = api_key.c
FIND_KEY = compiled(
    select(_k.id, _k.organization_id, _k.scopes).where(
        _k.digest == bindparam("digest", type_=LargeBinary),
        _k.revoked_at.is_(None),
        or_(_k.expires_at.is_(None), _k.expires_at > func.clock_timestamp()),
    )
)


class KeyRow(NamedTuple):
    """A valid key: whose it is and what it may do."""

    id: UUID
    organization_id: UUID
    scopes: list[str]


def read_pool(url: str, settings: Settings) -> "AsyncConnectionPool[Any]":
    """A few connections for reads; opened by `await pool.open()`, without waiting for the database."""
    return AsyncConnectionPool(
        url,
        min_size=1,
        max_size=4,
        timeout=settings.connect_timeout_seconds + 1,
        open=False,
        kwargs={
            "autocommit": True,
            "connect_timeout": settings.connect_timeout_seconds,
            "application_name": APPLICATION,
            "prepare_threshold": 0,
        },
        check=AsyncConnectionPool.check_connection,
    )


async def find_key(pool: "AsyncConnectionPool[Any]", digest: bytes) -> KeyRow | None:
    """The key with this digest, if it is neither revoked nor expired."""
    async with pool.connection() as connection:
        cursor = await connection.execute(FIND_KEY, {"digest": digest})
        row = await cursor.fetchone()
    return KeyRow(*row) if row else None


async def answers(pool: "AsyncConnectionPool[Any]") -> None:
    """Raises psycopg.Error if the database does not answer."""
    async with pool.connection() as connection:
        await connection.execute("SELECT 1")
