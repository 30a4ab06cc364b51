"""Transactions of tests without a server or a command. At SERIALIZABLE they run again after a conflict, as those do.

READ COMMITTED has no such conflicts, so there a transaction runs once.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from psycopg.errors import SerializationFailure
from sqlalchemy import Connection, Engine

from server.config import Settings
from server.store import engine as store_engine
from server.store.conflicts import TRIES_MAX
from server.store.connection import PipelinedConnection

T = TypeVar("T")


def is_serializable() -> bool:
    """Whether the tests run at SERIALIZABLE, as with `make test-serializable`."""
    return Settings().isolation == "serializable"


def in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Do `work` in a transaction of the admin commands' engine."""
    if is_serializable():
        return store_engine.in_transaction(engine, work)
    with engine.begin() as connection:
        return work(connection)


async def retried(connection: PipelinedConnection, work: Callable[[], Awaitable[T]]) -> T:
    """Do `work()`, which is a transaction on one of the server's connections."""
    for _ in range(TRIES_MAX - 1 if is_serializable() else 0):
        try:
            return await work()
        except SerializationFailure:
            await connection.rollback()
    return await work()
