"""Batches: many pending orders, one transaction.

A worker has order connections. Each carries out one batch at a time. All orders of an organization use the same one, so
that batches do not meet on its row.

After a batch of one order the next starts at once. Under load a batch waits some milliseconds until it is as large as
the one before. Its callers have just got their responses, and send their next orders. Batches of 27 gave 4,200 orders/s
on two cores with 128 in flight. Without the wait they had 5 orders, and gave 3,050.

What a batch cannot decide goes to the retry connections, one order per transaction (one_by_one.py). Without a database
the whole batch is refused.

All this is about speed and fairness. Correctness rests on the locks (store/orders.py).
"""

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from psycopg import errors

from server import metrics
from server.admission import Admission, Respond, Response, Shared
from server.config import Settings
from server.errors import Code, Refusal
from server.messages import order_response
from server.one_by_one import OneByOne
from server.pending import PendingWrite, Queue
from server.rules.values import Decision, Order, Replayed, Retry
from server.store.conflicts import CONFLICTS
from server.store.connection import DatabaseAway
from server.store.orders import STATEMENTS, place, place_alone
from server.store.transaction import OutcomeUnknown
from server.write_connection import WriteConnection

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
SKIP_SECONDS = 1.0
"""How long batches skip locked rows after one had to wait for such a row, instead of waiting again each time."""
SHARE_MAX = 16
"""Most orders of one organization in a batch, while others have orders too. Otherwise they wait for longer batches."""
SHARED_SECONDS = 1.0
"""How long such a share holds after the last batch with orders of several organizations."""
CHECK_SECONDS_MAX = 3.0
"""How long the database may take to show that an order could be carried out."""


class Batcher:
    """The orders of one worker, on `settings.order_connections` and `settings.retry_connections`."""

    def __init__(self, settings: Settings, database_url: str, shared: Shared) -> None:
        self._shared = shared
        self._admission = Admission(settings.orders_in_progress_max, shared)

        def connection() -> WriteConnection:
            return WriteConnection(settings, database_url, shared.unsettled, STATEMENTS)

        retries = [connection() for _ in range(settings.retry_connections)]
        self._check = connection()
        self._retries = OneByOne(settings, retries, place_alone, "retries")
        self._queues = [_OrderQueue(settings, self._retries, connection()) for _ in range(settings.order_connections)]

    @property
    def is_full(self) -> bool:
        """Whether one more order would be refused at once."""
        return self._admission.is_full

    @property
    def in_progress(self) -> int:
        """Orders that wait or run."""
        return self._admission.count

    @property
    def waiting(self) -> dict[str, int]:
        """The lengths of the queues, by name."""
        return {"orders": sum(queue.length for queue in self._queues), **self._retries.waiting}

    async def check(self) -> None:
        """Return if an order could be carried out now. Raises DatabaseAway."""
        connections = [*(queue.connection for queue in self._queues), *self._retries.connections]
        await asyncio.gather(*(connection.check_if_idle() for connection in connections))
        await self._check.check(CHECK_SECONDS_MAX)
        if self._shared.unsettled.is_full:
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
        return _response(await self._admission.decision(order, timeout_seconds, self._put))

    def begin(self, order: Order, deadline: float, caller: "asyncio.Future[Any]", respond: Respond) -> None:
        """Place an order without an idempotency key. What `place` returns or raises is passed to `respond`.

        Raises UNAVAILABLE if there are too many.
        """

        def respond_to(decision: Decision) -> None:
            respond(decision if isinstance(decision, Refusal) else _response(decision))

        self._admission.admit(order, deadline, caller, respond_to, self._put)

    def _put(self, pending: PendingWrite) -> None:
        self._queues[hash(pending.write.organization_id) % len(self._queues)].put(pending)


def _response(decision: Any) -> Response:
    """The response to an order that was placed, now or earlier under the same idempotency key."""
    if isinstance(decision, Replayed):
        return Response(decision.response, is_replayed=True, key_is_valid=True)
    return Response(order_response(decision), key_is_valid=True)


class _OrderQueue:
    """One order connection, and the queue of orders for it."""

    def __init__(self, settings: Settings, retries: OneByOne, connection: WriteConnection) -> None:
        self.connection = connection
        self._settings = settings
        self._retries = retries
        self._queue = Queue()
        self._expected = 1
        self._has_expected = asyncio.Event()
        self._closing = False
        self._skip_until = 0.0
        self._shared_until = 0.0
        self._task = asyncio.create_task(self._run())

    @property
    def length(self) -> int:
        return self._queue.length

    def put(self, pending: PendingWrite) -> None:
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
                metrics.BATCH_ORDERS.observe(len(batch))
                await self._carry_out(batch)

    async def _wait_for_orders(self, count: int) -> None:
        """Return when so many orders are queued, or when no more will come."""
        while self._queue.length < count and not self._closing:
            self._expected = count
            self._has_expected.clear()
            await self._has_expected.wait()

    def _next_batch(self) -> list[PendingWrite]:
        """Queued orders that should still be sent."""
        now = asyncio.get_running_loop().time()
        orders_max, numbers_max = self._settings.batch_orders_max, self._settings.batch_numbers_max
        share_max = SHARE_MAX if now < self._shared_until else orders_max
        while batch := self._queue.take(orders_max, numbers_max, share_max):
            wanted = []
            for pending in batch:
                if pending.is_wanted:  # asked once: the result changes with time
                    wanted.append(pending)
                else:
                    pending.end()
            if wanted:
                if len({pending.write.organization_id for pending in wanted}) > 1:
                    self._shared_until = now + SHARED_SECONDS
                return wanted
        return []

    async def _carry_out(self, batch: Sequence[PendingWrite]) -> None:
        """End each order of a batch, or pass it to the retry connections, whatever happens."""
        decisions = await self._decisions(batch)
        for pending in batch:
            decision = decisions.get(pending, Retry())
            if isinstance(decision, Retry):
                pending.note_rollback()
                metrics.RETRIES["orders",].value += 1
                self._retries.put(pending)
            else:
                pending.end(decision)

    async def _decisions(self, batch: Sequence[PendingWrite]) -> Mapping[PendingWrite, Decision]:
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

    async def _attempt(self, batch: Sequence[PendingWrite], *, skip_locked: bool) -> Mapping[PendingWrite, Decision]:
        lock_seconds = self._settings.lock_timeout_ms / 1000
        async with self.connection.attempt(batch, lock_seconds) as (connection, running, limits):
            if not running:
                return {}
            orders = [pending.write for pending in running if isinstance(pending.write, Order)]
            decisions = await place(connection, orders, limits, skip_locked=skip_locked)
        if skip_locked:
            metrics.LOCK_SKIPS.value += sum(isinstance(decision, Retry) for decision in decisions)
        return dict(zip(running, decisions, strict=True))
