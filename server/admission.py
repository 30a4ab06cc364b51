"""Admits writes up to a limit, and waits for what becomes of each. Writes with the same idempotency key take turns."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from server.config import Settings
from server.deadlines import Deadlines
from server.errors import Code, Refusal
from server.pending import PendingWrite
from server.rules.values import Id, Order, Write
from server.write_connection import UnsettledCommits

Put = Callable[[PendingWrite], None]
Respond = Callable[[Any], None]


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
        self._deadlines = Deadlines()
        self._locks: dict[PendingWrite, asyncio.Lock] = {}

    @property
    def is_full(self) -> bool:
        """Whether one more write would be refused at once."""
        return self._count >= self._count_max or self._shared.unsettled.is_full

    @property
    def count(self) -> int:
        """Writes that wait or run."""
        return self._count

    async def decision(self, write: Order | Write, timeout_seconds: float, put: Put) -> Any:
        """Pass a write to `put`, and return what became of it. Raises the Refusal that was decided.

        Raises UNAVAILABLE if the write was certainly not carried out, or TIMEOUT if it may have been. When the caller
        leaves, a write that was not sent is dropped. One that was is finished.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        caller: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def respond(decision: Any) -> None:
            if isinstance(decision, Refusal):
                caller.set_exception(decision)
            else:
                caller.set_result(decision)

        self._begin()
        try:
            lock = await self._idempotency_lock(write, deadline)
        except BaseException:
            self._count -= 1
            raise
        self._put(PendingWrite(write, deadline, caller, respond, self._on_end), put, lock)
        return await caller

    def admit(
        self, write: Order | Write, deadline: float, caller: "asyncio.Future[Any]", respond: Respond, put: Put
    ) -> None:
        """As `decision`, for a write without an idempotency key. What became of it is passed to `respond`."""
        self._begin()
        self._put(PendingWrite(write, deadline, caller, respond, self._on_end), put)

    def _begin(self) -> None:
        if self.is_full:
            raise Refusal(Code.UNAVAILABLE)
        self._count += 1

    def _put(self, pending: PendingWrite, put: Put, lock: asyncio.Lock | None = None) -> None:
        if lock:
            self._locks[pending] = lock
        try:
            put(pending)
        except BaseException:
            self._count -= 1
            self._release(pending)
            raise
        self._deadlines.add(pending)

    def _on_end(self, pending: PendingWrite) -> None:
        self._count -= 1
        self._deadlines.discard(pending)
        self._release(pending)

    def _release(self, pending: PendingWrite) -> None:
        if lock := self._locks.pop(pending, None):
            lock.release()

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
