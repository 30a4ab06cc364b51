"""Waiting orders, gathered: many orders, one transaction.

A worker has lanes, each with one connection, carrying out one batch at a time. A lone order is carried out at once.
While there are many, a batch waits a few milliseconds for as many orders as the last one had: their callers, answered
just now, come again, and a larger batch costs server and database so much less an order that it is the faster way (at
128 in flight on two cores 4,200 orders/s with batches of 27, and 3,050 with batches of 5 when none waited).

An organization's orders all use the same lane, so that batches do not meet on its row; who gets into a batch goes
round-robin over organizations, so that one's flood does not starve another. Speed and fairness only: correctness is the
locks'.

What cannot be settled in a batch goes to the slow lane, one order a transaction, until its deadline: an order of rows
that somebody else keeps locked, an order whose outcome nobody heard, every order of a batch that failed as a whole.
"""

import asyncio
import logging
import random
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakValueDictionary

import psycopg
from psycopg import errors

from server.config import Settings
from server.errors import Code, Refusal
from server.ordering import Busy, Decision, Id, Order, Placed, Replayed
from server.store.orders import STATEMENTS, AnswerOf, InProgress, Limits, OutcomeUnknown, place, place_alone
from server.store.pipeline import PipelinedConnection, connect

log = logging.getLogger(__name__)

# Another transaction was in the way; ours left nothing behind and may be run again, whole.
IN_THE_WAY = (errors.SerializationFailure, errors.DeadlockDetected)
# The same, but it may stay there for long.
HELD_UP = (errors.LockNotAvailable, errors.QueryCanceled)
NO_DATABASE = (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError)
ATTEMPTS_MAX = 5
SKIP_SECONDS = 1.0
"""After it met a locked row a lane skips such rows for so long, instead of waiting for them once a batch."""
SETTLE_SECONDS = 0.5
"""The database ends a transaction that takes too long; if so much later we have not heard of it, we hang up."""
SLOW_LOCK_SECONDS_MIN = 0.025
SLOW_PAUSE_SECONDS_MAX = 0.1
CERTAIN_SECONDS = 0.05
"""So long before their deadline orders are given up, while it is still certain what became of them."""


class Answer(NamedTuple):
    """What is answered to an order that was placed, and whether that was said before, under its idempotency key."""

    message: bytes
    replayed: bool


@dataclass(slots=True, eq=False)
class _Waiting:
    """An order on its way. Its caller hears of it once, and may leave before; `end` is when nothing is left to do."""

    order: Order
    deadline: float
    answer: "asyncio.Future[Decision]"
    on_end: Callable[[], None]
    late: Code = Code.UNAVAILABLE
    """What its caller hears when time is up: UNAVAILABLE only while it is certain that nothing is carried out."""
    sent: Placed | None = None
    """What was sent to be written, when nobody heard what became of it."""

    @property
    def is_wanted(self) -> bool:
        return not self.answer.done()

    def begin(self) -> None:
        self.late = Code.TIMEOUT

    def undone(self, late: Code = Code.UNAVAILABLE) -> None:
        """The attempt has left nothing behind."""
        if self.sent is None:
            self.late = late

    def expire(self) -> None:
        self._tell(Refusal(self.late))

    def end(self, decision: Decision) -> None:
        self._tell(decision)
        self.on_end()

    def _tell(self, decision: Decision) -> None:
        if self.answer.done():
            return
        if isinstance(decision, Refusal):
            self.answer.set_exception(decision)
        else:
            self.answer.set_result(decision)


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
    """The orders of one worker process, on `settings.lanes` connections and as many slow ones as the settings say."""

    def __init__(self, settings: Settings, database_url: str, answer_of: AnswerOf) -> None:
        self._count = 0
        self._orders_max = settings.queue_orders_max
        self._answer_of = answer_of
        self._slow = _SlowLane(settings, database_url, answer_of)
        self._lanes = [_Lane(settings, database_url, answer_of, self._slow) for _ in range(settings.lanes)]
        self._turns: WeakValueDictionary[tuple[Id, str], asyncio.Lock] = WeakValueDictionary()

    @property
    def is_full(self) -> bool:
        """Whether one more order would be refused at once."""
        return self._count >= self._orders_max

    async def close(self) -> None:
        """Finish what has begun, refuse what comes, close the connections."""
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        await self._slow.close()

    async def place(self, order: Order, timeout_seconds: float) -> Answer:
        """Place an order. Raises the Refusal that was decided; UNAVAILABLE if it was certainly not carried out, TIMEOUT
        if it may have been. An order whose caller leaves before its batch began is dropped; one that began is finished.
        """
        if self.is_full:
            raise Refusal(Code.UNAVAILABLE)
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        self._count += 1
        turn = None
        try:
            turn = await self._turn(order, deadline)
            waiting = self._entered(order, deadline, turn)
        except BaseException:
            self._count -= 1
            if turn:
                turn.release()
            raise
        decision = await self._settled(waiting)
        if isinstance(decision, Replayed):
            return Answer(decision.answer, replayed=True)
        assert isinstance(decision, Placed)  # noqa: S101
        return Answer(self._answer_of(decision), replayed=False)

    async def _turn(self, order: Order, deadline: float) -> asyncio.Lock | None:
        """Orders under the same idempotency key come one after the other: the second finds the first's answer."""
        if order.idempotency is None:
            return None
        turn = self._turns.setdefault((order.organization_id, order.idempotency.key), asyncio.Lock())
        try:
            async with asyncio.timeout_at(deadline):
                await turn.acquire()
        except TimeoutError:
            raise Refusal(Code.IDEMPOTENCY_IN_PROGRESS) from None
        return turn

    def _entered(self, order: Order, deadline: float, turn: asyncio.Lock | None) -> _Waiting:
        def over() -> None:
            self._count -= 1
            if turn:
                turn.release()

        waiting = _Waiting(order, deadline, asyncio.get_running_loop().create_future(), over)
        self._lanes[hash(order.organization_id) % len(self._lanes)].put(waiting)
        return waiting

    async def _settled(self, waiting: _Waiting) -> Decision:
        expiry = asyncio.get_running_loop().call_at(waiting.deadline, waiting.expire)
        try:
            return await waiting.answer
        finally:
            expiry.cancel()


class _Connection:
    """One connection for orders, opened when first needed and again when it was lost."""

    def __init__(self, settings: Settings, database_url: str) -> None:
        self._settings = settings
        self._url = database_url
        self._open: PipelinedConnection | None = None

    @asynccontextmanager
    async def transaction(
        self, batch: Sequence[_Waiting], lock_seconds: float
    ) -> AsyncIterator[tuple[PipelinedConnection, Limits]]:
        """For one attempt of a batch, over before its last deadline. After a failure nothing is left of it, unless it
        is OutcomeUnknown. Raises psycopg.Error, TimeoutError."""
        connection = await self._connected()
        left = max(waiting.deadline for waiting in batch) - asyncio.get_running_loop().time() - CERTAIN_SECONDS
        seconds = max(0.0, min(left, self._settings.transaction_seconds_max))
        for waiting in batch:
            waiting.begin()
        try:
            async with connection.at_most(seconds + SETTLE_SECONDS):
                yield connection, Limits(min(lock_seconds, seconds), seconds)
        except BaseException as error:
            if isinstance(error, OutcomeUnknown):
                log.warning("the outcome of %d orders is unknown", len(error.placed), exc_info=True)
                sent = {placed.order.id: placed for placed in error.placed}
                for waiting in batch:
                    waiting.sent = sent.get(waiting.order.id, waiting.sent)
            for waiting in batch:
                waiting.undone()
            await self._recover(connection)
            raise

    async def close(self) -> None:
        if self._open:
            await self._open.close()

    async def _connected(self) -> PipelinedConnection:
        if self._open is None or self._open.is_broken:
            self._open = await connect(self._url, self._settings, STATEMENTS)
        return self._open

    async def _recover(self, connection: PipelinedConnection) -> None:
        """Roll back, or do without this connection from now on."""
        try:
            async with connection.at_most(self._settings.connect_timeout_seconds):
                await connection.rollback()
        except (psycopg.Error, TimeoutError):
            await connection.close()


class _Lane:
    def __init__(self, settings: Settings, database_url: str, answer_of: AnswerOf, slow: "_SlowLane") -> None:
        self._settings = settings
        self._answer_of = answer_of
        self._slow = slow
        self._queue = _Queue()
        self._wanted = 1
        self._enough = asyncio.Event()
        self._closing = False
        self._skip_until = 0.0
        self._connection = _Connection(settings, database_url)
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
            for waiting in batch:
                if not waiting.is_wanted:
                    waiting.end(Refusal(waiting.late))
            if wanted := [waiting for waiting in batch if waiting.is_wanted]:
                return wanted
        return []

    async def _carry_out(self, batch: Sequence[_Waiting]) -> None:
        """Settle a batch, or let the slow lane do it, whatever happens."""
        try:
            decisions: Sequence[Decision] = await self._decisions(batch)
        except NO_DATABASE as error:
            log.warning("%d orders could not be carried out: %r", len(batch), error)
            decisions = [Refusal(Code.UNAVAILABLE) for _ in batch]
        for waiting, decision in zip(batch, decisions, strict=True):
            if isinstance(decision, Busy):
                waiting.undone()
                self._slow.put(waiting)
            else:
                waiting.end(decision)

    async def _decisions(self, batch: Sequence[_Waiting]) -> Sequence[Decision]:
        """What becomes of each order. Raises what says that there is no database."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            skip = asyncio.get_running_loop().time() < self._skip_until
            try:
                return await self._attempt(batch, skip_locked=skip)
            except IN_THE_WAY:
                pass
            except errors.LockNotAvailable:
                if skip:  # it is none of the rows that we would skip
                    break
                self._skip_until = asyncio.get_running_loop().time() + SKIP_SECONDS
                continue
            except (OutcomeUnknown, errors.QueryCanceled):
                break
            except NO_DATABASE:
                if attempt == ATTEMPTS_MAX or not any(waiting.is_wanted for waiting in batch):
                    raise
            except Exception:
                log.exception("a batch of %d orders failed", len(batch))
                break
            await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        return [Busy() for _ in batch]

    async def _attempt(self, batch: Sequence[_Waiting], *, skip_locked: bool) -> list[Decision]:
        orders = [waiting.order for waiting in batch]
        lock_seconds = self._settings.lock_timeout_ms / 1000
        async with self._connection.transaction(batch, lock_seconds) as (connection, limits):
            return await place(connection, orders, self._answer_of, limits, skip_locked=skip_locked)


class _SlowLane:
    """Each order by itself, again and again until it is decided or its deadline has passed."""

    def __init__(self, settings: Settings, database_url: str, answer_of: AnswerOf) -> None:
        self._lock_seconds_max = settings.lock_timeout_ms / 1000
        self._answer_of = answer_of
        self._connections = [_Connection(settings, database_url) for _ in range(settings.slow_lanes)]
        self._free: asyncio.Queue[_Connection] = asyncio.Queue()
        for connection in self._connections:
            self._free.put_nowait(connection)
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, waiting: _Waiting) -> None:
        task = asyncio.create_task(self._settle(waiting))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(connection.close() for connection in self._connections))

    async def _settle(self, waiting: _Waiting) -> None:
        lock_seconds = min(SLOW_LOCK_SECONDS_MIN, self._lock_seconds_max)
        decision: Decision = Busy()
        while isinstance(decision, Busy) and self._is_worthwhile(waiting):
            connection = await self._free.get()
            try:
                if self._is_worthwhile(waiting):
                    decision = await self._decision(connection, waiting, lock_seconds)
            finally:
                self._free.put_nowait(connection)
            if isinstance(decision, Busy):
                lock_seconds = min(2 * lock_seconds, self._lock_seconds_max)
                await asyncio.sleep(random.uniform(0, SLOW_PAUSE_SECONDS_MAX))  # noqa: S311
        waiting.end(Refusal(waiting.late) if isinstance(decision, Busy) else decision)

    def _is_worthwhile(self, waiting: _Waiting) -> bool:
        left = waiting.deadline - asyncio.get_running_loop().time()
        return waiting.is_wanted and left > CERTAIN_SECONDS

    async def _decision(self, connection: _Connection, waiting: _Waiting, lock_seconds: float) -> Decision:
        """What becomes of an order, Busy if it is to be tried again."""
        try:
            async with connection.transaction([waiting], lock_seconds) as (open_, limits):
                decision = await place_alone(open_, waiting.order, self._answer_of, limits, waiting.sent)
            if isinstance(decision, Busy):
                waiting.undone()
            return decision
        except InProgress:
            waiting.undone(Code.IDEMPOTENCY_IN_PROGRESS)
        except (OutcomeUnknown, *IN_THE_WAY, *HELD_UP):
            pass
        except NO_DATABASE as error:
            if waiting.sent is None:
                log.warning("an order could not be carried out: %r", error)
                return Refusal(Code.UNAVAILABLE)
        except Exception:
            log.exception("an order failed")
            return Refusal(Code.INTERNAL if waiting.sent is None else Code.TIMEOUT)
        return Busy()
