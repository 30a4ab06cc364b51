"""Admits writes up to a limit, and waits for what becomes of each. Writes with the same idempotency key take turns."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from server.config import Settings
from server.errors import Code, Refusal
from server.pending import PendingWrite
from server.rules.values import Id, Order, Write
from server.write_connection import UnsettledCommits


class Response(NamedTuple):
    """The response to a call, and where it comes from."""

    message: bytes
    is_replayed: bool = False
    """Whether it was stored earlier, under the call's idempotency key."""
    key_is_valid: bool = False
    """Whether the call's transaction has read its API key and found it valid."""


class Shared:
    """What all writes of a worker share."""

    def __init__(self, settings: Settings) -> None:
        self.unsettled = UnsettledCommits(settings.unsettled_commits_max)
        self.idempotency_locks: WeakValueDictionary[tuple[Id, str], asyncio.Lock] = WeakValueDictionary()


class Admission:
    """Admits `count_max` writes at the same time."""

    def __init__(self, count_max: int, shared: Shared) -> None:
        self._count = 0
        self._count_max = count_max
        self._shared = shared

    @property
    def is_full(self) -> bool:
        """Whether one more write would be refused at once."""
        return self._count >= self._count_max or self._shared.unsettled.is_full

    async def decision(self, write: Order | Write, timeout_seconds: float, put: Callable[[PendingWrite], None]) -> Any:
        """Pass a write to `put`, and return what became of it. Raises the Refusal that was decided.

        Raises UNAVAILABLE if the write was certainly not carried out, or TIMEOUT if it may have been. When the caller
        leaves, a write that was not sent is dropped. One that was is finished.
        """
        if self.is_full:
            raise Refusal(Code.UNAVAILABLE)
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        self._count += 1
        lock = None
        try:
            lock = await self._idempotency_lock(write, deadline)
            pending = self._pending(write, deadline, lock)
            put(pending)
        except BaseException:
            self._count -= 1
            if lock:
                lock.release()
            raise
        expiry = asyncio.get_running_loop().call_at(deadline, pending.expire)
        try:
            return await pending.decision
        finally:
            expiry.cancel()

    async def _idempotency_lock(self, write: Order | Write, deadline: float) -> asyncio.Lock | None:
        """Wait until no other write of this worker has the same idempotency key. It then finds that one's response."""
        if write.idempotency is None:
            return None
        key = write.organization_id, write.idempotency.key
        lock = self._shared.idempotency_locks.setdefault(key, asyncio.Lock())
        try:
            async with asyncio.timeout_at(deadline):
                await lock.acquire()
        except TimeoutError:
            raise Refusal(Code.IDEMPOTENCY_IN_PROGRESS) from None
        return lock

    def _pending(self, write: Order | Write, deadline: float, lock: asyncio.Lock | None) -> PendingWrite:
        def on_end() -> None:
            self._count -= 1
            if lock:
                lock.release()

        return PendingWrite(write, deadline, asyncio.get_running_loop().create_future(), on_end)
