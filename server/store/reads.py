"""Reads outside the order transaction: the keys of calls."""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from psycopg import Error

from server.config import Settings
from server.rules.values import Id
from server.store.connection import (
    IDLE_CHECK_SECONDS_MAX,
    DatabaseAway,
    PipelinedConnection,
    ReconnectingConnection,
    Result,
)
from server.store.statements import BoundStatement, load

FIND_VALID_KEYS = load("key", "find_valid_keys")


class Principal(NamedTuple):
    """A valid key: its owner, and what it may do."""

    digest: bytes
    api_key_id: Id
    organization_id: Id
    scopes: frozenset[str]


class Reader:
    """One connection for reads. A read may take `seconds_max`, including the wait for the connection."""

    def __init__(self, url: str, settings: Settings, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._connection = ReconnectingConnection(url, settings, (FIND_VALID_KEYS,))
        self._free = asyncio.Lock()

    async def find_keys(self, digests: Collection[bytes]) -> dict[bytes, Principal]:
        """By digest, the keys that are neither revoked nor expired. Raises DatabaseAway."""
        found = await self._run(FIND_VALID_KEYS(digests=_bytea_array(digests)))
        return {
            digest: Principal(digest, api_key_id, organization_id, frozenset(scopes))
            for digest, api_key_id, organization_id, scopes in found.rows
        }

    async def check_if_idle(self) -> None:
        """Test the connection if it is open and not in use. Close it if it is lost."""
        if self._connection.is_open and not self._free.locked():
            with suppress(Error, DatabaseAway, TimeoutError):
                async with asyncio.timeout(IDLE_CHECK_SECONDS_MAX), self._free:
                    await self._run_once(FIND_VALID_KEYS(digests="{}"))

    async def close(self) -> None:
        await self._connection.close()

    async def _run(self, statement: BoundStatement) -> Result:
        try:
            async with asyncio.timeout(self._seconds_max), self._free:
                if self._connection.is_open:
                    # It may have been lost long ago. A read changes nothing, so it can run again on a new connection.
                    with suppress(DatabaseAway):
                        return await self._run_once(statement)
                return await self._run_once(statement)
        except TimeoutError:
            raise DatabaseAway(f"no answer within {self._seconds_max:g} s") from None
        except Error as error:
            raise DatabaseAway(error, rolled_back=True) from None

    async def _run_once(self, statement: BoundStatement) -> Result:
        connection: PipelinedConnection = await self._connection.get()
        try:
            (result,) = await connection.run(statement)
        except BaseException:
            connection.cut()  # the next statement would read the results of this one
            raise
        return result


def _bytea_array(values: Collection[bytes]) -> str:
    return "{" + ",".join(f'"\\\\x{value.hex()}"' for value in values) + "}"
