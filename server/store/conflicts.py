"""Conflicts: errors which say that another transaction was in the way, and how often work is tried again after them.

The transaction is rolled back, also if the error is that of its COMMIT. So all of it may run again.
READ COMMITTED has only deadlocks. At SERIALIZABLE every statement may fail so, even one that only reads.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from psycopg.errors import DeadlockDetected, SerializationFailure
from sqlalchemy.exc import DBAPIError

CONFLICTS = (SerializationFailure, DeadlockDetected)
TRIES_MAX = 20
PAUSE_SECONDS_MAX = 0.5
"""The longest pause. The first ones are shorter."""

T = TypeVar("T")


def run_with_retries(work: Callable[[], T]) -> T:
    """Run `work`, at most TRIES_MAX times while it fails by a conflict."""
    for tries in range(1, TRIES_MAX):
        try:
            return work()
        except DBAPIError as error:
            if not isinstance(error.orig, CONFLICTS):
                raise
        time.sleep(_pause_seconds(tries))
    return work()


async def await_with_retries(work: Callable[[], Awaitable[T]], pause_seconds_max: float = PAUSE_SECONDS_MAX) -> T:
    """As `run_with_retries`, for work on one of the server's own connections."""
    for tries in range(1, TRIES_MAX):
        try:
            return await work()
        except CONFLICTS:
            pass
        await asyncio.sleep(min(_pause_seconds(tries), pause_seconds_max))
    return await work()


def _pause_seconds(tries: int) -> float:
    # Random, so that two transactions that met in a conflict do not meet again.
    return random.uniform(0, min(PAUSE_SECONDS_MAX, 0.01 * 2**tries))  # noqa: S311  not for cryptography
