"""Connections for reads, and the look-up of keys."""

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from psycopg import Error

from server.config import Settings
from server.rules.values import Id
from server.store import queries, searches
from server.store.conflicts import CONFLICTS, await_with_retries
from server.store.connection import (
    IDLE_CHECK_SECONDS_MAX,
    DatabaseAway,
    PipelinedConnection,
    ReconnectingConnection,
    Result,
)
from server.store.statements import BoundStatement, Statement, load, milliseconds

FIND_VALID_KEYS = load("key", "find_valid_keys")
LIMIT_READ = load("session", "limit_read")
QUERIES = (LIMIT_READ, FIND_VALID_KEYS, *queries.STATEMENTS, *searches.STATEMENTS)
"""What a connection for the reads of callers prepares."""
KEYS = (LIMIT_READ, FIND_VALID_KEYS)
"""What the connection for the look-up of keys prepares."""
PAUSE_SECONDS_MAX = 0.02
"""After a conflict. All other reads of the connection wait meanwhile."""


class Principal(NamedTuple):
    """A valid key: its owner, and what it may do."""

    digest: bytes
    api_key_id: Id
    organization_id: Id
    scopes: frozenset[str]


class Reader:
    """One connection for reads, used by one read at a time."""

    def __init__(self, url: str, settings: Settings, statements: Sequence[Statement]) -> None:
        self._connection = ReconnectingConnection(url, settings, statements)
        self._free = asyncio.Lock()

    async def find_keys(self, digests: Collection[bytes], seconds_max: float) -> dict[bytes, Principal]:
        """By digest, the keys that are neither revoked nor expired. Raises DatabaseAway."""
        (found,) = await self.run([FIND_VALID_KEYS(digests=_bytea_array(digests))], seconds_max)
        return {
            digest: Principal(digest, api_key_id, organization_id, frozenset(scopes))
            for digest, api_key_id, organization_id, scopes in found.rows
        }

    async def run(self, statements: Sequence[BoundStatement], seconds_max: float) -> list[Result]:
        """Execute the statements in one round trip. Raises DatabaseAway, also after `seconds_max`.

        The time includes the wait for the connection.
        """
        ends = asyncio.get_running_loop().time() + seconds_max
        try:
            async with asyncio.timeout_at(ends), self._free:
                if self._connection.is_open:
                    # It may have been lost long ago. A read changes nothing, so it can run again on a new connection.
                    with suppress(DatabaseAway):
                        return await self._run(statements, ends)
                return await self._run(statements, ends)
        except TimeoutError:
            raise DatabaseAway(f"no answer within {seconds_max:g} s") from None
        except Error as error:
            raise DatabaseAway(error, rolled_back=True) from None

    async def check_if_idle(self) -> None:
        """Test the connection if it is open and not in use. Close it if it is lost."""
        if self._connection.is_open and not self._free.locked():
            with suppress(Error, DatabaseAway, TimeoutError):
                async with asyncio.timeout(IDLE_CHECK_SECONDS_MAX), self._free:
                    ends = asyncio.get_running_loop().time() + IDLE_CHECK_SECONDS_MAX
                    await self._run_once([FIND_VALID_KEYS(digests="{}")], ends)

    async def close(self) -> None:
        await self._connection.close()

    async def _run(self, statements: Sequence[BoundStatement], ends: float) -> list[Result]:
        return await await_with_retries(lambda: self._run_once(statements, ends), PAUSE_SECONDS_MAX)

    async def _run_once(self, statements: Sequence[BoundStatement], ends: float) -> list[Result]:
        connection: PipelinedConnection = await self._connection.get()
        # The database stops as well when the time is over.
        left_ms = (ends - asyncio.get_running_loop().time()) * 1000
        try:
            _, *results = await connection.run(LIMIT_READ(statement_timeout=milliseconds(left_ms)), *statements)
        except CONFLICTS:  # the connection is as good as before
            raise
        except BaseException:
            connection.cut()  # the next statement would read the results of this one
            raise
        return results


def _bytea_array(values: Collection[bytes]) -> str:
    return "{" + ",".join(f'"\\\\x{value.hex()}"' for value in values) + "}"
