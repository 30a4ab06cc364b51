"""Waiting orders, gathered: many orders, one transaction.

A worker has lanes, each with one connection, carrying out one batch at a time. A lone order is carried out at once.
While there are many, a batch waits a few milliseconds for as many orders as the last one had: their callers, answered
just now, come again, and a larger batch costs server and database so much less an order that it is the faster way (at
128 in flight on two cores 4,200 orders/s with batches of 27, and 3,050 with batches of 5 when none waited).

An organization's orders all use the same lane, so that batches do not meet on its row; who gets into a batch goes
round-robin over organizations, so that one's flood does not starve another. Speed and fairness only: correctness is the
locks'.
"""

import asyncio
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from psycopg import errors

from server.config import Settings
from server.errors import Code, Refusal
from server.ordering import Decision, Id, Order, Placed
from server.store.orders import STATEMENTS, OutcomeUnknown, place
from server.store.pipeline import PipelinedConnection, connect

log = logging.getLogger(__name__)

# Another transaction was in the way; ours left nothing behind and may be run again, whole.
TRANSIENT = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)
ATTEMPTS_MAX = 5


@dataclass(slots=True, eq=False)
class _Waiting:
    order: Order
    answer: "asyncio.Future[Placed]"
    begun: bool = False


@dataclass(slots=True)
class _Queue:
    """Orders by organization, each organization in turn."""

    by_organization: OrderedDict[Id, deque[_Waiting]] = field(default_factory=OrderedDict)
    length: int = 0

    def put(self, waiting: _Waiting) -> None:
        self.length += 1
        self.by_organization.setdefault(waiting.order.organization_id, deque()).append(waiting)

    def take(self, orders_max: int, numbers_max: int) -> list[_Waiting]:
        """The next batch, at least one order if any waits. Whoever was served goes to the end of the round."""
        batch: list[_Waiting] = []
        numbers = 0
        while self.by_organization and len(batch) < orders_max:
            organization_id, waiting = self.by_organization.popitem(last=False)
            numbers += len(waiting[0].order.numbers)
            if batch and numbers > numbers_max:
                self.by_organization[organization_id] = waiting
                self.by_organization.move_to_end(organization_id, last=False)
                break
            batch.append(waiting.popleft())
            if waiting:
                self.by_organization[organization_id] = waiting
        self.length -= len(batch)
        return batch


class Batcher:
    """The orders of one worker process, on `settings.lanes` connections."""

    def __init__(self, settings: Settings, database_url: str) -> None:
        self._waiting = 0
        self._orders_max = settings.queue_orders_max
        self._lanes = [_Lane(settings, database_url) for _ in range(settings.lanes)]

    async def close(self) -> None:
        """Finish what has begun, refuse what waits, close the connections."""
        await asyncio.gather(*(lane.close() for lane in self._lanes))

    async def place(self, order: Order, timeout_seconds: float) -> Placed:
        """Place an order. Raises the Refusal that was decided; UNAVAILABLE if it was certainly not carried out, TIMEOUT
        if it may have been. An order whose caller leaves before its batch began is dropped; one that began is finished.
        """
        if self._waiting >= self._orders_max:
            raise Refusal(Code.UNAVAILABLE)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(order, loop.create_future())
        expiry = loop.call_later(timeout_seconds, _expire, waiting)
        self._waiting += 1
        try:
            self._lanes[hash(order.organization_id) % len(self._lanes)].put(waiting)
            return await waiting.answer
        finally:
            self._waiting -= 1
            expiry.cancel()


def _expire(waiting: _Waiting) -> None:
    _answer(waiting, Refusal(Code.TIMEOUT if waiting.begun else Code.UNAVAILABLE))


def _answer(waiting: _Waiting, decision: Decision) -> None:
    """Tell the caller, if it still waits: it may have left while its batch ran."""
    if waiting.answer.done():
        return
    if isinstance(decision, Placed):
        waiting.answer.set_result(decision)
    else:
        waiting.answer.set_exception(decision)


class _Lane:
    def __init__(self, settings: Settings, database_url: str) -> None:
        self._settings = settings
        self._url = database_url
        self._queue = _Queue()
        self._wanted = 1
        self._enough = asyncio.Event()
        self._closing = False
        self._connection: PipelinedConnection | None = None
        self._task = asyncio.create_task(self._run())

    def put(self, waiting: _Waiting) -> None:
        if self._closing:
            raise Refusal(Code.UNAVAILABLE)
        self._queue.put(waiting)
        if self._queue.length >= self._wanted:
            self._enough.set()

    async def close(self) -> None:
        self._closing = True
        self._enough.set()
        await self._task
        if self._connection:
            await self._connection.close()

    async def _run(self) -> None:
        expected = 1
        while self._queue.length or not self._closing:
            await self._until_waiting(1)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.gather_ms / 1000):
                    await self._until_waiting(expected)
            batch = self._next_batch()
            expected = len(batch)
            if batch:
                await self._carry_out(batch)

    async def _until_waiting(self, count: int) -> None:
        """Return when so many orders wait, or when no more will come."""
        while self._queue.length < count and not self._closing:
            self._wanted = count
            self._enough.clear()
            await self._enough.wait()

    def _next_batch(self) -> list[_Waiting]:
        """What waits and is still wanted."""
        while batch := self._queue.take(self._settings.batch_orders_max, self._settings.batch_numbers_max):
            if wanted := [waiting for waiting in batch if not waiting.answer.done()]:
                return wanted
        return []

    async def _carry_out(self, batch: Sequence[_Waiting]) -> None:
        """Answer a batch, whatever happens. If the database refuses it as a whole, each order is tried on its own, so
        that one bad order cannot fail its neighbours."""
        for waiting in batch:
            waiting.begun = True
        try:
            decisions: Sequence[Decision] = await self._place([waiting.order for waiting in batch])
        except OutcomeUnknown:
            log.warning("the outcome of %d orders is unknown", len(batch), exc_info=True)
            decisions = [Refusal(Code.TIMEOUT) for _ in batch]
        except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError):
            log.warning("%d orders could not be carried out", len(batch), exc_info=True)
            decisions = [Refusal(Code.UNAVAILABLE) for _ in batch]
        except Exception:
            log.exception("a batch of %d orders failed", len(batch))
            if len(batch) > 1:
                for waiting in batch:
                    await self._carry_out([waiting])
                return
            decisions = [Refusal(Code.INTERNAL)]
        for waiting, decision in zip(batch, decisions, strict=True):
            _answer(waiting, decision)

    async def _place(self, orders: Sequence[Order]) -> list[Decision]:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return await self._attempt(orders)
            except TRANSIENT:
                if attempt == ATTEMPTS_MAX:
                    raise
                await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")

    async def _attempt(self, orders: Sequence[Order]) -> list[Decision]:
        connection = await self._connected()
        try:
            async with connection.at_most(self._settings.transaction_seconds_max):
                return await place(connection, orders)
        except BaseException:
            await self._recover(connection)
            raise

    async def _connected(self) -> PipelinedConnection:
        if self._connection is None or self._connection.is_broken:
            self._connection = await connect(self._url, self._settings, STATEMENTS)
        return self._connection

    async def _recover(self, connection: PipelinedConnection) -> None:
        """Roll back, or do without this connection from now on."""
        try:
            async with connection.at_most(self._settings.connect_timeout_seconds):
                await connection.rollback()
        except (psycopg.Error, TimeoutError):
            await connection.close()
