"""Forgetting the answers that have been kept long enough under their idempotency keys."""

import asyncio

from sqlalchemy import Interval, Text, bindparam, cast, delete, func, literal_column, select

from server.config import Settings
from server.store.connection import Statement, connect
from server.store.tables import idempotency_key

STEP_ROWS = 500
STEP_PAUSE_SECONDS = 0.1
"""Between steps, so that forgetting takes a small share of the database however much there is to forget."""


def _step() -> Statement:
    """Forget some of the oldest, but none that somebody is at work on."""
    i = idempotency_key.c
    kept = cast(bindparam("kept", type_=Text), Interval)
    old = (
        select(i.organization_id, i.key)
        .where(i.created_at < func.clock_timestamp() - kept)
        .order_by(i.created_at)
        .limit(literal_column(str(STEP_ROWS)))
        .with_for_update(skip_locked=True)
        .cte("old")
    )
    return Statement(
        "purge", delete(idempotency_key).where(i.organization_id == old.c.organization_id, i.key == old.c.key)
    )


PURGE = _step()
# An answer that a failover brings back is harmless. Waiting for a standby would leave locks behind when there is none.
NO_STANDBY = Statement("no_standby", "SET synchronous_commit = local")


async def purge(database_url: str, settings: Settings) -> int:
    """Forget what is older than `settings.idempotency_ms`, in small steps; how many answers that was.

    Raises psycopg.Error, DatabaseAway.
    """
    kept = f"{settings.idempotency_ms}ms"
    connection = await connect(database_url, settings, (NO_STANDBY, PURGE))
    forgotten = 0
    try:
        async with connection.at_most(settings.transaction_max_ms / 1000):
            await connection.run(NO_STANDBY())
        while True:
            async with connection.at_most(settings.transaction_max_ms / 1000):
                (result,) = await connection.run(PURGE(kept=kept))
            rows = int(result.tag.removeprefix("DELETE "))
            forgotten += rows
            if rows < STEP_ROWS:
                return forgotten
            await asyncio.sleep(STEP_PAUSE_SECONDS)
    finally:
        await connection.close()
