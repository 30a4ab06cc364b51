"""Waiting orders, gathered: many orders, one transaction.

A worker has lanes, each with one connection, carrying out one batch at a time. A lone order is carried out at once.
While there are many, a batch waits a few milliseconds for as many orders as the last one had: their callers, answered
just now, come again, and a larger batch costs server and database so much less an order that it is the faster way (at
128 in flight on two cores 4,200 orders/s with batches of 27, and 3,050 with batches of 5 when none waited).

An organization's orders all use the same lane, so that batches do not meet on its row. Who gets into a batch goes
round-robin over organizations, so that one's flood does not starve another. Speed and fairness only: correctness is the
locks'.

What cannot be settled in a batch goes to the slow lane, one order a transaction, until its deadline: an order of rows
that another transaction keeps locked, an order whose outcome is unknown, every order of a batch that failed as a whole.
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
from server.order_connection import HELD_UP, IN_THE_WAY, OrderConnection, Unsettled
from server.pending import PendingOrder, Queue, Stage
from server.rules.values import Decision, Id, Order, Placed, Replayed, Retry
from server.store.connection import DatabaseAway
from server.store.orders import AnswerOf, InProgress, OutcomeUnknown, place, place_alone

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
AWAY_MAX = 2
"""The slow lane gives an order up when there was no database for it so many times."""
SKIP_SECONDS = 1.0
"""After it met a locked row a lane skips such rows for so long, instead of waiting for them once a batch."""
SLOW_LOCK_SECONDS_MIN = 0.025
SLOW_PAUSE_SECONDS_MAX = 0.1
CHECK_SECONDS_MAX = 3.0
"""How long the database may take to show that an order could be carried out."""


class Answer(NamedTuple):
    """What is answered to a call, and how it came about."""

    message: bytes
    replayed: bool = False
    """Whether it was given before, under its idempotency key."""
    key_seen: bool = False
    """Whether the call's transaction has read its key, and found it valid."""


class Batcher:
    """The orders of one worker process, on `settings.lanes` connections and as many slow ones as the settings say."""

    def __init__(self, settings: Settings, database_url: str, answer_of: AnswerOf) -> None:
        self._count = 0
        self._orders_max = settings.queue_orders_max
        self._answer_of = answer_of
        self._unsettled = Unsettled(settings.unsettled_commits_max)

        def connection() -> OrderConnection:
            return OrderConnection(settings, database_url, self._unsettled)

        self._check = connection()
        self._slow = _SlowLane(settings, answer_of, [connection() for _ in range(settings.retry_connections)])
        self._lanes = [_Lane(settings, answer_of, self._slow, connection()) for _ in range(settings.order_connections)]
        self._turns: WeakValueDictionary[tuple[Id, str], asyncio.Lock] = WeakValueDictionary()

    @property
    def is_full(self) -> bool:
        """Whether one more order would be refused at once."""
        return self._count >= self._orders_max or self._unsettled.is_full

    async def check(self) -> None:
        """Return if an order could be carried out now: every statement of its transaction works, without an order.

        Raises psycopg.Error, DatabaseAway.
        """
        order_connections = [lane.connection for lane in self._lanes]
        await asyncio.gather(*(each.check_if_idle() for each in (*order_connections, *self._slow.connections)))
        await self._check.check(CHECK_SECONDS_MAX)
        if self._unsettled.is_full:
            raise DatabaseAway("too many transactions of ours wait for their COMMIT, perhaps for a standby")

    async def close(self) -> None:
        """Finish what has begun, refuse what comes, close the connections."""
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        await self._slow.close()
        await self._check.close()

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
            pending = self._entered(order, deadline, turn)
        except BaseException:
            self._count -= 1
            if turn:
                turn.release()
            raise
        decision = await self._settled(pending)
        if isinstance(decision, Replayed):
            return Answer(decision.answer, replayed=True, key_seen=True)
        assert isinstance(decision, Placed)  # noqa: S101
        return Answer(self._answer_of(decision), key_seen=True)

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

    def _entered(self, order: Order, deadline: float, turn: asyncio.Lock | None) -> PendingOrder:
        def over() -> None:
            self._count -= 1
            if turn:
                turn.release()

        pending = PendingOrder(order, deadline, asyncio.get_running_loop().create_future(), over)
        self._lanes[hash(order.organization_id) % len(self._lanes)].put(pending)
        return pending

    async def _settled(self, pending: PendingOrder) -> Decision:
        expiry = asyncio.get_running_loop().call_at(pending.deadline, pending.expire)
        try:
            return await pending.answer
        finally:
            expiry.cancel()


class _Lane:
    def __init__(self, settings: Settings, answer_of: AnswerOf, slow: "_SlowLane", connection: OrderConnection) -> None:
        self.connection = connection
        self._settings = settings
        self._answer_of = answer_of
        self._slow = slow
        self._queue = Queue()
        self._wanted = 1
        self._enough = asyncio.Event()
        self._closing = False
        self._skip_until = 0.0
        self._task = asyncio.create_task(self._run())

    def put(self, pending: PendingOrder) -> None:
        if self._closing:
            raise Refusal(Code.UNAVAILABLE)
        self._queue.put(pending)
        if self._queue.length >= self._wanted:
            self._enough.set()

    async def close(self) -> None:
        self._closing = True
        self._enough.set()
        await self._task
        await self.connection.close()

    async def _run(self) -> None:
        expected = 1
        while self._queue.length or not self._closing:
            await self._until_waiting(1)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.batch_linger_ms / 1000):
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

    def _next_batch(self) -> list[PendingOrder]:
        """What waits and is still wanted."""
        while batch := self._queue.take(self._settings.batch_orders_max, self._settings.batch_numbers_max):
            wanted = [pending for pending in batch if pending.is_wanted]
            for pending in batch:
                if pending not in wanted:
                    pending.end()
            if wanted:
                return wanted
        return []

    async def _carry_out(self, batch: Sequence[PendingOrder]) -> None:
        """End each order of a batch, or hand it to the slow lane, whatever happens."""
        decisions = await self._decisions(batch)
        for pending in batch:
            decision = decisions.get(pending, Retry())
            if isinstance(decision, Retry):
                pending.undone()
                self._slow.put(pending)
            else:
                pending.end(decision)

    async def _decisions(self, batch: Sequence[PendingOrder]) -> Mapping[PendingOrder, Decision]:
        """What becomes of the orders. Those that are missing are to be tried one by one, if they are still wanted."""
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
            decisions = await place(connection, orders, self._answer_of, limits, skip_locked=skip_locked)
        return dict(zip(running, decisions, strict=True))


class _SlowLane:
    """Each order by itself, again and again until it is decided or its deadline has passed.

    Organizations take turns. Orders of one number are not tried at the same time: a locked number would hold every
    connection, for as many orders as there are for it.
    """

    def __init__(self, settings: Settings, answer_of: AnswerOf, connections: Sequence[OrderConnection]) -> None:
        self.connections = connections
        self._lock_seconds_max = settings.lock_timeout_ms / 1000
        self._answer_of = answer_of
        self._queue = Queue()
        self._pausing = 0
        self._numbers: set[str] = set()  # of the orders that are tried just now
        self._closing = False
        self._changed = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(connection)) for connection in connections]

    def put(self, pending: PendingOrder) -> None:
        self._queue.put(pending)
        self._changed.set()

    async def close(self) -> None:
        """Settle what waits, then close the connections."""
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
                pause_seconds = random.uniform(0, SLOW_PAUSE_SECONDS_MAX)  # noqa: S311
                asyncio.get_running_loop().call_later(pause_seconds, self._again, pending)
            else:
                pending.end(decision)

    def _again(self, pending: PendingOrder) -> None:
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
        """What becomes of an order, Busy if it is to be tried again."""
        lock_seconds = min(SLOW_LOCK_SECONDS_MIN * 2 ** min(pending.tries, 10), self._lock_seconds_max)
        pending.tries += 1
        try:
            async with connection.attempt([pending], lock_seconds) as (open_, running, limits):
                if not running:
                    return Retry()
                decision = await place_alone(open_, pending.order, self._answer_of, limits, pending.sent)
            if isinstance(decision, Retry):
                pending.undone()
            return decision
        except InProgress:
            pending.undone(Stage.KEY_IN_USE)
        except (OutcomeUnknown, *IN_THE_WAY, *HELD_UP):
            pass
        except DatabaseAway as error:
            pending.times_away += 1
            if pending.sent is None and pending.times_away >= AWAY_MAX:
                log.warning("an order could not be carried out: %s", error)
                return Refusal(Code.UNAVAILABLE)
        except Exception:
            log.exception("an order failed")
            return Refusal(Code.INTERNAL if pending.sent is None else Code.TIMEOUT)
        return Retry()
