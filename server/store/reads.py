"""Reads outside the order transaction: the keys of calls."""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

from psycopg import Error
from sqlalchemy import ARRAY, LargeBinary, Text, any_, bindparam, cast, func, or_, select

from server.config import Settings
from server.rules.values import Id
from server.store.connection import (
    IDLE_CHECK_SECONDS_MAX,
    Call,
    DatabaseAway,
    PipelinedConnection,
    ReconnectingConnection,
    Result,
    Statement,
)
from server.store.tables import api_key

_k = api_key.c
FIND_KEYS = Statement(
    "find_keys",
    select(_k.digest, cast(_k.id, Text), cast(_k.organization_id, Text), _k.scopes).where(
        _k.digest == any_(cast(bindparam("digests", type_=Text), ARRAY(LargeBinary))),
        _k.revoked_at.is_(None),
        or_(_k.expires_at.is_(None), _k.expires_at > func.clock_timestamp()),
    ),
)


class Principal(NamedTuple):
    """A valid key: whose it is and what it may do."""

    digest: bytes
    api_key_id: Id
    organization_id: Id
    scopes: frozenset[str]


class Reader:
    """One connection for reads. A question may take `seconds_max`, waiting for its turn included.

    Raises DatabaseAway.
    """

    def __init__(self, url: str, settings: Settings, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._connection = ReconnectingConnection(url, settings, (FIND_KEYS,))
        self._free = asyncio.Lock()

    async def find_keys(self, digests: Collection[bytes]) -> dict[bytes, Principal]:
        """By digest, those keys that are neither revoked nor expired."""
        array = "{" + ",".join(f'"\\\\x{digest.hex()}"' for digest in digests) + "}"
        found = await self._run(FIND_KEYS(digests=array))
        return {
            digest: Principal(digest, api_key_id, organization_id, frozenset(scopes))
            for digest, api_key_id, organization_id, scopes in found.rows
        }

    async def check_if_idle(self) -> None:
        """Close the connection if it is open, not in use, and lost."""
        if self._connection.is_open and not self._free.locked():
            with suppress(Error, DatabaseAway, TimeoutError):
                async with asyncio.timeout(IDLE_CHECK_SECONDS_MAX), self._free:
                    await self._try(FIND_KEYS(digests="{}"))

    async def close(self) -> None:
        await self._connection.close()

    async def _run(self, call: Call) -> Result:
        try:
            async with asyncio.timeout(self._seconds_max), self._free:
                if self._connection.is_open:
                    try:
                        return await self._try(call)
                    except DatabaseAway:
                        pass  # it may have been lost long ago, and a read changes nothing: once more on a new one
                return await self._try(call)
        except TimeoutError:
            raise DatabaseAway(f"no answer within {self._seconds_max:g} s") from None
        except Error as error:
            raise DatabaseAway(error, answered=True) from None

    async def _try(self, call: Call) -> Result:
        connection: PipelinedConnection = await self._connection.get()
        try:
            (result,) = await connection.run(call)
        except BaseException:
            connection.cut()  # whatever is still to come on it would be taken for the next answer
            raise
        return result
