"""Who calls, and what the call needs: the bearer key of its metadata, and the scope that its method declares."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from google.protobuf.descriptor import MethodDescriptor

from ordernumbers.v1 import options_pb2
from server import keys
from server.errors import Code, Refusal
from server.store.reads import Principal

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE | re.ASCII)
CACHED_KEYS_MAX = 10_000


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

    A sale reads the key again under its locks, so what is remembered here can let a refusal lag, never an effect; and
    a key that a call has just used there is as good as looked up. Unknown keys are not remembered. Whatever is asked
    for while a look-up is under way shares the next one.

    Keys are easily made up, so those that were never seen valid here are looked up `new_keys_per_second` at most.
    """

    def __init__(
        self,
        find: Callable[[Collection[bytes]], Awaitable[dict[bytes, Principal]]],
        cache_seconds: float,
        new_keys_per_second: int,
    ) -> None:
        self._find = find
        self._cache_seconds = cache_seconds
        self._new_keys = Budget(new_keys_per_second)
        self._known: dict[bytes, tuple[float, Principal]] = {}
        self._wanted: dict[bytes, asyncio.Future[Principal | None]] = {}
        self._looking_up: asyncio.Task[None] | None = None

    async def authenticate(self, authorization: Sequence[str | bytes]) -> Principal:
        """The caller. Raises UNAUTHORIZED, one answer for every fault; RATE_LIMITED or DatabaseAway if not known."""
        digest = keys.digest(bearer_key(authorization))
        known = self._known.get(digest)
        if known and known[0] > time.monotonic():
            return known[1]
        principal = await self._ask(digest)
        if principal is None:
            self._known.pop(digest, None)
            raise Refusal(Code.UNAUTHORIZED)
        return principal

    def renew(self, principal: Principal, seen: float) -> None:
        """The database has found this key valid, at some time after `seen` (of `time.monotonic`). Only a call that has
        read the key there may say so."""
        self._known.pop(principal.digest, None)  # so that the one seen longest ago is first
        if len(self._known) >= CACHED_KEYS_MAX:
            del self._known[next(iter(self._known))]
        self._known[principal.digest] = (seen + self._cache_seconds, principal)

    async def _ask(self, digest: bytes) -> Principal | None:
        answer = self._wanted.get(digest)
        if answer is None:
            if digest not in self._known and not self._new_keys.take():
                raise Refusal(Code.RATE_LIMITED)  # not UNAUTHORIZED: nothing is known of it
            answer = self._wanted[digest] = asyncio.get_running_loop().create_future()
        if self._looking_up is None:
            self._looking_up = asyncio.create_task(self._look_up())
        return await asyncio.shield(answer)

    async def _look_up(self) -> None:
        """All that is wanted, in one question, until nothing is."""
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            asked = time.monotonic()  # the answers are as old as the question
            try:
                found = await self._find(wanted)
            except Exception as error:
                for answer in wanted.values():
                    answer.set_exception(error)
            else:
                for digest, answer in wanted.items():
                    principal = found.get(digest)
                    if principal:
                        self.renew(principal, asked)
                    answer.set_result(principal)
        self._looking_up = None


class Budget:
    """So many takings a second, and never more than those of one second at once."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._left = float(per_second)
        self._taken_at = time.monotonic()

    def take(self) -> bool:
        """Whether there was one left."""
        now = time.monotonic()
        self._left = min(self._per_second, self._left + (now - self._taken_at) * self._per_second)
        self._taken_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
