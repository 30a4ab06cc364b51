"""Authentication: the bearer key in a call's metadata, and the scope that the call's method needs."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from google.protobuf.descriptor import MethodDescriptor

from ordernumbers.v1 import options_pb2
from server import keys, metrics
from server.errors import Code, Refusal
from server.store.reads import Principal

_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE | re.ASCII)
CACHED_KEYS_MAX = 10_000


def required_scope(method: MethodDescriptor) -> str | None:
    """The scope that the proto declares for a method. A method without one refuses every key."""
    return method.GetOptions().Extensions[options_pb2.required_scope] or None


def bearer_key(authorization: Sequence[str | bytes]) -> str:
    """The one well-formed key among the values of a call's `authorization`. Raises UNAUTHORIZED."""
    if len(authorization) == 1 and isinstance(authorization[0], str):
        match = _BEARER.fullmatch(authorization[0])
        if match and keys.is_well_formed(match[1]):
            return match[1]
    raise Refusal(Code.UNAUTHORIZED)


class Authenticator:
    """Finds principals by the digest of their key, and caches them for `cache_seconds`.

    A sale reads the key again under its locks. So the cache may delay a refusal, but it never allows a sale. Unknown
    keys are not cached. They are looked up at most `unknown_keys_per_second` times per second.
    """

    def __init__(
        self,
        find: Callable[[Collection[bytes]], Awaitable[dict[bytes, Principal]]],
        cache_seconds: float,
        unknown_keys_per_second: int,
    ) -> None:
        self.cache_hits = 0
        """How often a key was found in the cache."""
        self._find = find
        self._cache_seconds = cache_seconds
        # Anybody can make up keys, and each costs a look-up. Calls with known keys must not pay for them.
        self._unknown_keys = Budget(unknown_keys_per_second)
        self._cached: dict[bytes, tuple[float, Principal]] = {}
        self._digest_of_value: dict[bytes, bytes] = {}
        """The digest of the key in a value of `authorization`, by the digest of that value."""
        self._wanted: dict[bytes, asyncio.Future[Principal | None]] = {}
        self._looking_up: asyncio.Task[None] | None = None

    def find_cached(self, authorization: Sequence[str | bytes]) -> Principal | None:
        """The caller, if its key is cached."""
        if len(authorization) != 1 or not isinstance(authorization[0], str):
            return None
        # The checks of a key's form cost ten times as much as a digest. The value of a valid key has passed them.
        digest = self._digest_of_value.get(keys.digest(authorization[0]))
        return self._cached_principal(digest) if digest else None

    async def authenticate(self, authorization: Sequence[str | bytes]) -> Principal:
        """The caller. Raises UNAUTHORIZED for any fault of the key, RATE_LIMITED or DatabaseAway if it is not known."""
        key = bearer_key(authorization)
        digest = keys.digest(key)
        principal = self._cached_principal(digest) or await self._find_one(digest)
        if principal is None:
            self._cached.pop(digest, None)
            raise Refusal(Code.UNAUTHORIZED)
        if len(self._digest_of_value) >= CACHED_KEYS_MAX:
            self._digest_of_value.clear()
        self._digest_of_value[keys.digest(str(authorization[0]))] = digest
        return principal

    def renew(self, principal: Principal, seen: float) -> None:
        """Cache the key again, because the database found it valid after `seen` (of `time.monotonic`).

        Only a call whose transaction has read the key may do so.
        """
        self._cached.pop(principal.digest, None)  # so that the oldest entry is always the first
        if len(self._cached) >= CACHED_KEYS_MAX:
            del self._cached[next(iter(self._cached))]
        self._cached[principal.digest] = (seen + self._cache_seconds, principal)

    def _cached_principal(self, digest: bytes) -> Principal | None:
        cached = self._cached.get(digest)
        if not (cached and cached[0] > time.monotonic()):
            return None
        self.cache_hits += 1
        return cached[1]

    async def _find_one(self, digest: bytes) -> Principal | None:
        found = self._wanted.get(digest)
        if found is None:
            if digest not in self._cached and not self._unknown_keys.take():
                metrics.KEYS["refused",].value += 1
                raise Refusal(Code.RATE_LIMITED)  # not UNAUTHORIZED: the key may be valid
            found = self._wanted[digest] = asyncio.get_running_loop().create_future()
        if self._looking_up is None:
            self._looking_up = asyncio.create_task(self._look_up())
        return await asyncio.shield(found)

    async def _look_up(self) -> None:
        """Look up all wanted keys in one query. Those that are wanted meanwhile share the next one."""
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            asked = time.monotonic()  # the result may be as old as the question
            try:
                found = await self._find(wanted)
            except Exception as error:
                metrics.KEYS["failed",].value += len(wanted)
                for future in wanted.values():
                    future.set_exception(error)
            else:
                for digest, future in wanted.items():
                    principal = found.get(digest)
                    metrics.KEYS["found" if principal else "unknown",].value += 1
                    if principal:
                        self.renew(principal, asked)
                    future.set_result(principal)
        self._looking_up = None


class Budget:
    """A limited number of uses per second. Unused ones are kept for one second at most."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._left = float(per_second)
        self._taken_at = time.monotonic()

    def take(self) -> bool:
        """Use one. False if none is left."""
        now = time.monotonic()
        self._left = min(self._per_second, self._left + (now - self._taken_at) * self._per_second)
        self._taken_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
