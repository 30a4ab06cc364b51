"""Batches: many pending orders, one transaction.

A worker has order connections. Each carries out one batch at a time. All orders of an organization use the same one, so
that batches do not meet on its row.

After a batch of one order the next starts at once. Under load a batch waits some milliseconds until it is as large as
the one before. Its callers have just got their responses, and send their next orders. Batches of 27 gave 4,200 orders/s
on two cores with 128 in flight. Without the wait they had 5 orders, and gave 3,050.

What a batch cannot decide goes to the retry connections, one order per transaction, until its deadline. That is an
order of rows that another transaction keeps locked, an order with an unknown outcome, or any order of a failed batch.
Without a database the whole batch is refused.

All this is about speed and fairness. Correctness rests on the locks (store/orders.py).
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakValueDictionary

from psycopg import errors

from server.config import Settings
from server.errors import Code, Refusal
from server.messages import order_response
from server.order_connection import CONFLICTS, LOCKED_OUT, OrderConnection, UnsettledCommits
from server.pending import PendingOrder, Queue, Stage
from server.rules.values import Decision, Id, Order, Placed, Replayed, Retry
from server.store.connection import DatabaseAway
from server.store.orders import InProgress, OutcomeUnknown, place, place_alone

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
AWAY_MAX = 2
"""After so many attempts that found no database, a retry connection refuses the order."""
SKIP_SECONDS = 1.0
"""How long batches skip locked rows after one had to wait for such a row, instead of waiting again each time."""
RETRY_LOCK_SECONDS_MIN = 0.025
RETRY_PAUSE_SECONDS_MAX = 0.1
CHECK_SECONDS_MAX = 3.0
"""How long the database may take to show that an order could be carried out."""


class Response(NamedTuple):
    """The response to a call, and where it comes from."""

    message: bytes
    is_replayed: bool = False
    """Whether it was stored earlier, under the call's idempotency key."""
    key_is_valid: bool = False
    """Whether the call's transaction has read its API key and found it valid."""


class Batcher:
    """The orders of one worker, on `settings.order_connections` and `settings.retry_connections`."""

    def __init__(self, settings: Settings, database_url: str) -> None:
        self._count = 0
        self._orders_max = settings.orders_in_progress_max
        self._unsettled = UnsettledCommits(settings.unsettled_commits_max)

        def connection() -> OrderConnection:
            return OrderConnection(settings, database_url, self._unsettled)

        self._check = connection()
        self._retries = _Retries(settings, [connection() for _ in range(settings.retry_connections)])
        self._queues = [_OrderQueue(settings, self._retries, connection()) for _ in range(settings.order_connections)]
        self._idempotency_locks: WeakValueDictionary[tuple[Id, str], asyncio.Lock] = WeakValueDictionary()

    @property
    def is_full(self) -> bool:
        """Whether one more order would be refused at once."""
        return self._count >= self._orders_max or self._unsettled.is_full

    async def check(self) -> None:
        """Return if an order could be carried out now. Raises DatabaseAway."""
        connections = [*(queue.connection for queue in self._queues), *self._retries.connections]
        await asyncio.gather(*(connection.check_if_idle() for connection in connections))
        await self._check.check(CHECK_SECONDS_MAX)
        if self._unsettled.is_full:
            raise DatabaseAway("too many of our transactions wait for their COMMIT, perhaps for a standby")

    async def close(self) -> None:
        """Finish the orders that are queued, refuse new ones, and close the connections."""
        await asyncio.gather(*(queue.close() for queue in self._queues))
        await self._retries.close()
        await self._check.close()

    async def place(self, order: Order, timeout_seconds: float) -> Response:
        """Place an order.

        Raises the Refusal that was decided. Raises UNAVAILABLE if the order was certainly not carried out, or TIMEOUT
        if it may have been. When the caller leaves, an order that was not sent is dropped. One that was is finished.
        """
        if self.is_full:
            raise Refusal(Code.UNAVAILABLE)
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        self._count += 1
        lock = None
        try:
            lock = await self._idempotency_lock(order, deadline)
            pending = self._enqueue(order, deadline, lock)
        except BaseException:
            self._count -= 1
            if lock:
                lock.release()
            raise
        decision = await self._decision(pending)
        if isinstance(decision, Replayed):
            return Response(decision.response, is_replayed=True, key_is_valid=True)
        assert isinstance(decision, Placed)  # noqa: S101
        return Response(order_response(decision), key_is_valid=True)

    async def _idempotency_lock(self, order: Order, deadline: float) -> asyncio.Lock | None:
        """Wait until no other order of this worker has the same idempotency key. It then finds that one's response."""
        if order.idempotency is None:
            return None
        lock = self._idempotency_locks.setdefault((order.organization_id, order.idempotency.key), asyncio.Lock())
        try:
            async with asyncio.timeout_at(deadline):
                await lock.acquire()
        except TimeoutError:
            raise Refusal(Code.IDEMPOTENCY_IN_PROGRESS) from None
        return lock

    def _enqueue(self, order: Order, deadline: float, lock: asyncio.Lock | None) -> PendingOrder:
        def on_end() -> None:
            self._count -= 1
            if lock:
                lock.release()

        pending = PendingOrder(order, deadline, asyncio.get_running_loop().create_future(), on_end)
        self._queues[hash(order.organization_id) % len(self._queues)].put(pending)
        return pending

    async def _decision(self, pending: PendingOrder) -> Decision:
        expiry = asyncio.get_running_loop().call_at(pending.deadline, pending.expire)
        try:
            return await pending.decision
        finally:
            expiry.cancel()


class _OrderQueue:
    """One order connection, and the queue of orders for it."""

    def __init__(self, settings: Settings, retries: "_Retries", connection: OrderConnection) -> None:
        self.connection = connection
        self._settings = settings
        self._retries = retries
        self._queue = Queue()
        self._expected = 1
        self._has_expected = asyncio.Event()
        self._closing = False
        self._skip_until = 0.0
        self._task = asyncio.create_task(self._run())

    def put(self, pending: PendingOrder) -> None:
        if self._closing:
            raise Refusal(Code.UNAVAILABLE)
        self._queue.put(pending)
        if self._queue.length >= self._expected:
            self._has_expected.set()

    async def close(self) -> None:
        self._closing = True
        self._has_expected.set()
        await self._task
        await self.connection.close()

    async def _run(self) -> None:
        last = 1
        while self._queue.length or not self._closing:
            await self._wait_for_orders(1)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.batch_linger_ms / 1000):
                    await self._wait_for_orders(last)
            batch = self._next_batch()
            last = len(batch)
            if batch:
                await self._carry_out(batch)

    async def _wait_for_orders(self, count: int) -> None:
        """Return when so many orders are queued, or when no more will come."""
        while self._queue.length < count and not self._closing:
            self._expected = count
            self._has_expected.clear()
            await self._has_expected.wait()

    def _next_batch(self) -> list[PendingOrder]:
        """Queued orders that should still be sent."""
        while batch := self._queue.take(self._settings.batch_orders_max, self._settings.batch_numbers_max):
            wanted = [pending for pending in batch if pending.is_wanted]
            for pending in batch:
                if pending not in wanted:
                    pending.end()
            if wanted:
                return wanted
        return []

    async def _carry_out(self, batch: Sequence[PendingOrder]) -> None:
        """End each order of a batch, or pass it to the retry connections, whatever happens."""
        decisions = await self._decisions(batch)
        for pending in batch:
            decision = decisions.get(pending, Retry())
            if isinstance(decision, Retry):
                pending.note_rollback()
                self._retries.put(pending)
            else:
                pending.end(decision)

    async def _decisions(self, batch: Sequence[PendingOrder]) -> Mapping[PendingOrder, Decision]:
        """The decisions on the orders. Those that are missing must be tried one by one."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            skip = asyncio.get_running_loop().time() < self._skip_until
            try:
                return await self._attempt(batch, skip_locked=skip)
            except CONFLICTS:
                pass
            except errors.LockNotAvailable:
                if skip:  # no row that is skipped: another lock, such as one on a whole table
                    break
                self._skip_until = asyncio.get_running_loop().time() + SKIP_SECONDS
                continue
            except (OutcomeUnknown, errors.QueryCanceled):
                break
            except DatabaseAway as error:
                if attempt == ATTEMPTS_MAX or not any(pending.is_wanted for pending in batch):
                    log.warning("%d orders could not be carried out: %s", len(batch), error)
                    return {pending: Refusal(Code.UNAVAILABLE) for pending in batch}
            except Exception:
                log.exception("a batch of %d orders failed", len(batch))
                break
            await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        return {}

    async def _attempt(self, batch: Sequence[PendingOrder], *, skip_locked: bool) -> Mapping[PendingOrder, Decision]:
        lock_seconds = self._settings.lock_timeout_ms / 1000
        async with self.connection.attempt(batch, lock_seconds) as (connection, running, limits):
            if not running:
                return {}
            orders = [pending.order for pending in running]
            decisions = await place(connection, orders, limits, skip_locked=skip_locked)
        return dict(zip(running, decisions, strict=True))


class _Retries:
    """The retry connections. They try each order alone, until it is decided or its deadline has passed.

    Organizations take turns. Orders of the same number are not tried at the same time. Otherwise one locked number
    would block every connection, once for each order of it.
    """

    def __init__(self, settings: Settings, connections: Sequence[OrderConnection]) -> None:
        self.connections = connections
        self._lock_seconds_max = settings.lock_timeout_ms / 1000
        self._queue = Queue()
        self._pausing = 0
        self._numbers: set[str] = set()  # of the orders that are being tried
        self._closing = False
        self._changed = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(connection)) for connection in connections]

    def put(self, pending: PendingOrder) -> None:
        self._queue.put(pending)
        self._changed.set()

    async def close(self) -> None:
        """Finish what is queued, then close the connections."""
        self._closing = True
        self._changed.set()
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(connection.close() for connection in self.connections))

    async def _run(self, connection: OrderConnection) -> None:
        while pending := await self._next():
            self._numbers.update(pending.order.numbers)
            decision = await self._decision(connection, pending)
            self._numbers.difference_update(pending.order.numbers)
            self._changed.set()
            if isinstance(decision, Retry):
                self._pausing += 1
                pause_seconds = random.uniform(0, RETRY_PAUSE_SECONDS_MAX)  # noqa: S311
                asyncio.get_running_loop().call_later(pause_seconds, self._put_again, pending)
            else:
                pending.end(decision)

    def _put_again(self, pending: PendingOrder) -> None:
        self._pausing -= 1
        self.put(pending)

    async def _next(self) -> PendingOrder | None:
        """The next order to try. None when no more will come."""
        while True:
            for pending in self._queue.take_unwanted():
                pending.end()
            if pending_or_none := self._queue.take_without(self._numbers):
                return pending_or_none
            if self._closing and not self._queue.length and not self._pausing:
                return None
            self._changed.clear()
            await self._changed.wait()

    async def _decision(self, connection: OrderConnection, pending: PendingOrder) -> Decision:
        """The decision on an order, which is Retry if it must be tried again."""
        lock_seconds = min(RETRY_LOCK_SECONDS_MIN * 2 ** min(pending.tries, 10), self._lock_seconds_max)
        pending.tries += 1
        try:
            async with connection.attempt([pending], lock_seconds) as (open_, running, limits):
                if not running:
                    return Retry()
                decision = await place_alone(open_, pending.order, limits, pending.sent)
            if isinstance(decision, Retry):
                pending.note_rollback()
            return decision
        except InProgress:
            pending.note_rollback(Stage.KEY_IN_USE)
        except (OutcomeUnknown, *CONFLICTS, *LOCKED_OUT):
            pass
        except DatabaseAway as error:
            pending.times_away += 1
            if pending.sent is None and pending.times_away >= AWAY_MAX:
                log.warning("an order could not be carried out: %s", error)
                return Refusal(Code.UNAVAILABLE)
        except Exception:
            log.exception("an order failed")
            # Something of it may have been sent by an earlier attempt.
            return Refusal(Code.INTERNAL if pending.sent is None else Code.TIMEOUT)
        return Retry()
