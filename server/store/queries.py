"""Reads outside the order transaction: the keys of calls, and whether the database answers."""

import asyncio
from collections.abc import Collection
from typing import NamedTuple

from psycopg import OperationalError
from sqlalchemy import ARRAY, LargeBinary, Text, any_, bindparam, cast, func, or_, select

from server.config import Settings
from server.ordering import Id
from server.store.pipeline import Call, PipelinedConnection, Result, Statement, connect
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
PING = Statement("ping", "SELECT 1")


class Principal(NamedTuple):
    """A valid key: whose it is and what it may do."""

    digest: bytes
    api_key_id: Id
    organization_id: Id
    scopes: frozenset[str]


class Reader:
    """One connection for reads, opened when first needed and again when it was lost. What it is asked may take
    `seconds_max`, waiting for its turn included.

    Raises psycopg.Error, or TimeoutError.
    """

    def __init__(self, url: str, settings: Settings, seconds_max: float) -> None:
        self._url = url
        self._settings = settings
        self._seconds_max = seconds_max
        self._connection: PipelinedConnection | None = None
        self._free = asyncio.Lock()

    async def find_keys(self, digests: Collection[bytes]) -> dict[bytes, Principal]:
        """By digest, those keys that are neither revoked nor expired."""
        array = "{" + ",".join(f'"\\\\x{digest.hex()}"' for digest in digests) + "}"
        found = await self._run(FIND_KEYS(digests=array))
        return {
            digest: Principal(digest, api_key_id, organization_id, frozenset(scopes))
            for digest, api_key_id, organization_id, scopes in found.rows
        }

    async def answers(self) -> None:
        """Return if the database answers."""
        await self._run(PING())

    async def close(self) -> None:
        if self._connection:
            await self._connection.close()

    async def _run(self, call: Call) -> Result:
        """Once more if the connection proves lost: it may have been so for long, and a read changes nothing."""
        async with asyncio.timeout(self._seconds_max), self._free:
            if self._connection and not self._connection.is_broken:
                try:
                    return await self._try(self._connection, call)
                except OperationalError:
                    if not self._connection.is_broken:
                        raise
            self._connection = await connect(self._url, self._settings, (FIND_KEYS, PING))
            return await self._try(self._connection, call)

    async def _try(self, connection: PipelinedConnection, call: Call) -> Result:
        try:
            (result,) = await connection.run(call)
        except BaseException:
            connection.cut()  # whatever is still to come on it would be taken for the next answer
            raise
        return result
