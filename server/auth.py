"""Who calls, and what the call needs: the bearer key of its metadata, and the scope that its method declares."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from google.protobuf.descriptor import MethodDescriptor

from ordernumbers.v1 import options_pb2
from server import keys
from server.errors import Code, Refusal
from server.ordering import Id

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE | re.ASCII)
CACHED_KEYS_MAX = 10_000
LOOK_UP_SECONDS_MAX = 3.0


class Principal(NamedTuple):
    """The key of a call: whose it is and what it may do."""

    api_key_id: Id
    organization_id: Id
    scopes: frozenset[str]


def required_scope(method: MethodDescriptor) -> str | None:
    """The scope that the proto declares for a method; None refuses every key."""
    return method.GetOptions().Extensions[options_pb2.required_scope] or None


def bearer_key(authorization: Sequence[str | bytes]) -> str:
    """The one well-formed key among the values of a call's `authorization`. Raises UNAUTHORIZED."""
    if len(authorization) == 1 and isinstance(authorization[0], str):
        match = _BEARER.fullmatch(authorization[0])
        if match and keys.is_well_formed(match[1]):
            return match[1]
    raise Refusal(Code.UNAUTHORIZED)


class Authenticator:
    """Knows keys by their digest, and remembers valid ones for `cache_seconds`.

    A sale reads the key again under its locks, so what is remembered here can let a refusal lag, never an effect.
    Unknown keys are not remembered; equal look-ups under way are one.
    """

    def __init__(self, find: Callable[[bytes], Awaitable[Principal | None]], cache_seconds: float) -> None:
        self._find = find
        self._cache_seconds = cache_seconds
        self._known: dict[bytes, tuple[float, Principal]] = {}
        self._asking: dict[bytes, asyncio.Task[Principal | None]] = {}

    async def authenticate(self, authorization: Sequence[str | bytes]) -> Principal:
        """The caller. Raises UNAUTHORIZED, one answer for every fault; psycopg.Error, TimeoutError if not known."""
        digest = keys.digest(bearer_key(authorization))
        known = self._known.get(digest)
        if known and known[0] > time.monotonic():
            return known[1]
        principal = await self._ask(digest)
        if principal is None:
            self._known.pop(digest, None)
            raise Refusal(Code.UNAUTHORIZED)
        return principal

    async def _ask(self, digest: bytes) -> Principal | None:
        task = self._asking.get(digest)
        if task is None:
            task = self._asking[digest] = asyncio.create_task(self._look_up(digest))
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        async with asyncio.timeout(LOOK_UP_SECONDS_MAX):
            return await asyncio.shield(task)

    async def _look_up(self, digest: bytes) -> Principal | None:
        asked = time.monotonic()  # the answer is as old as the question
        principal = await self._find(digest)
        if principal:
            if len(self._known) >= CACHED_KEYS_MAX:
                self._known.clear()
            self._known[digest] = (asked + self._cache_seconds, principal)
        return principal
