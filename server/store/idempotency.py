"""Deletes stored responses that are older than the settings say."""

import asyncio

import psycopg

from server.config import Settings
from server.store.conflicts import await_with_retries
from server.store.connection import DatabaseAway, PipelinedConnection, Result, connect
from server.store.statements import load

STEP_ROWS = 500
STEP_PAUSE_SECONDS = 0.1
"""Between steps, so that the purge uses a small share of the database however much there is to delete."""

WAIT_FOR_NO_STANDBY = load("idempotency", "wait_for_no_standby")
PURGE = load("idempotency", "purge")


async def purge(database_url: str, settings: Settings) -> int:
    """Delete what is older than `settings.idempotency_ms`, in small steps. Return the number of deleted responses.

    Raises DatabaseAway.
    """
    connection = await connect(database_url, settings, (WAIT_FOR_NO_STANDBY, PURGE))
    try:
        return await _purge(connection, settings)
    except psycopg.Error as error:
        raise DatabaseAway(error) from None
    finally:
        await connection.close()


async def _purge(connection: PipelinedConnection, settings: Settings) -> int:
    async def step() -> Result:
        async with connection.at_most(settings.transaction_max_ms / 1000):
            (result,) = await connection.run(PURGE(kept_ms=str(settings.idempotency_ms)))
        return result

    deleted = 0
    async with connection.at_most(settings.transaction_max_ms / 1000):
        await connection.run(WAIT_FOR_NO_STANDBY())
    while True:
        rows = int((await await_with_retries(step)).tag.removeprefix("DELETE "))
        deleted += rows
        if rows < STEP_ROWS:
            return deleted
        await asyncio.sleep(STEP_PAUSE_SECONDS)
