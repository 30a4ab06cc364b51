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
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple
from weakref import WeakValueDictionary

import psycopg
from psycopg import errors

from server.config import Settings
from server.errors import Code, Refusal
from server.ordering import Busy, Decision, Id, Order, Placed, Replayed
from server.store.orders import STATEMENTS, AnswerOf, InProgress, Limits, OutcomeUnknown, place, place_alone
from server.store.pipeline import (
    IDLE_CHECK_SECONDS_MAX,
    RUNNING,
    DatabaseAway,
    PipelinedConnection,
    ReconnectingConnection,
)

log = logging.getLogger(__name__)

# Another transaction was in the way. Ours left nothing behind and may be run again, whole.
IN_THE_WAY = (errors.SerializationFailure, errors.DeadlockDetected)
# The same, but it may stay there for long.
HELD_UP = (errors.LockNotAvailable, errors.QueryCanceled)
# After these a connection is as good as before, once it is rolled back. After any other error it is closed.
HARMLESS = (*IN_THE_WAY, *HELD_UP, InProgress, psycopg.IntegrityError)
ATTEMPTS_MAX = 5
AWAY_MAX = 2
"""The slow lane gives an order up when there was no database for it so many times."""
SKIP_SECONDS = 1.0
"""After it met a locked row a lane skips such rows for so long, instead of waiting for them once a batch."""
SETTLE_SECONDS = 0.5
"""How long after `statement_timeout` we wait before closing the socket."""
SLOW_LOCK_SECONDS_MIN = 0.025
SLOW_PAUSE_SECONDS_MAX = 0.1
CERTAIN_SECONDS = 0.05
"""So long before its deadline an order is no longer sent: it could only time out."""
CHECK_SECONDS_MAX = 3.0
"""How long the database may take to show that an order could be carried out."""


class Answer(NamedTuple):
    """What is answered to a call, and how it came about."""

    message: bytes
    replayed: bool = False
    """Whether it was given before, under its idempotency key."""
    key_seen: bool = False
    """Whether the call's transaction has read its key, and found it valid."""


class Stage(Enum):
    """How far an order is on its way."""

    QUEUED = auto()
    """Nothing of it is in the database."""
    KEY_IN_USE = auto()
    """The same, and another transaction is at work under its idempotency key."""
    RUNNING = auto()
    """A transaction with it is under way."""
    UNCONFIRMED = auto()
    """Its write was sent, and its outcome is unknown."""
    TOLD = auto()
    """Its caller has been answered. It must not be sent any more."""


# What a caller is told when time is up. UNAVAILABLE means that the order certainly is not carried out.
LATE = {
    Stage.QUEUED: Code.UNAVAILABLE,
    Stage.KEY_IN_USE: Code.IDEMPOTENCY_IN_PROGRESS,
    Stage.RUNNING: Code.TIMEOUT,
    Stage.UNCONFIRMED: Code.TIMEOUT,
}


@dataclass(slots=True, eq=False)
class PendingOrder:
    """An order on its way. Its caller is answered once. `on_end` is called when nothing is left to do for it."""

    order: Order
    deadline: float
    answer: "asyncio.Future[Decision]"
    on_end: Callable[[], None]
    stage: Stage = Stage.QUEUED
    sent: Placed | None = None
    """What was sent to be written, while the order is UNCONFIRMED."""
    tries: int = 0
    """How often the slow lane has tried it."""
    times_away: int = 0
    """How often there was no database for it there."""

    @property
    def is_wanted(self) -> bool:
        """Whether it would still be sent, now."""
        left = self.deadline - asyncio.get_running_loop().time()
        return self.stage is not Stage.TOLD and not self.answer.done() and left > CERTAIN_SECONDS

    def begin(self) -> bool:
        """Whether a transaction may send it. There must be no `await` between this and the sending."""
        if not self.is_wanted:
            return False
        if self.stage is not Stage.UNCONFIRMED:
            self.stage = Stage.RUNNING
        return True

    def undone(self, stage: Stage = Stage.QUEUED) -> None:
        """The attempt has left nothing behind."""
        if self.stage not in (Stage.TOLD, Stage.UNCONFIRMED):
            self.stage = stage

    def unconfirmed(self, sent: Placed) -> None:
        """Nobody knows whether the attempt has written `sent`."""
        self.sent = sent
        if self.stage is not Stage.TOLD:
            self.stage = Stage.UNCONFIRMED

    def expire(self) -> None:
        """Time is up."""
        if self.stage is not Stage.TOLD:
            self._tell(Refusal(LATE[self.stage]))

    def end(self, decision: Decision | None = None) -> None:
        """This is what became of it. None: time is up, or its caller has left."""
        if decision is None:
            self.expire()
        else:
            self._tell(decision)
        self.on_end()

    def _tell(self, decision: Decision) -> None:
        if self.stage is Stage.TOLD:
            return
        self.stage = Stage.TOLD
        if self.answer.done():  # the caller has left
            return
        if isinstance(decision, Refusal):
            self.answer.set_exception(decision)
        else:
            self.answer.set_result(decision)


@dataclass(slots=True)
class _Queue:
    """Orders by organization, each organization in turn."""

    by_organization: OrderedDict[Id, deque[PendingOrder]] = field(default_factory=OrderedDict)
    length: int = 0

    def put(self, pending: PendingOrder) -> None:
        self.length += 1
        self.by_organization.setdefault(pending.order.organization_id, deque()).append(pending)

    def take(self, orders_max: int, numbers_max: int) -> list[PendingOrder]:
        """The next batch, at least one order if any waits. Whoever was served goes to the end of the round."""
        batch: list[PendingOrder] = []
        numbers = 0
        while self.by_organization and len(batch) < orders_max:
            organization_id, pending = self.by_organization.popitem(last=False)
            numbers += len(pending[0].order.numbers)
            if batch and numbers > numbers_max:
                self.by_organization[organization_id] = pending
                self.by_organization.move_to_end(organization_id, last=False)
                break
            batch.append(pending.popleft())
            if pending:
                self.by_organization[organization_id] = pending
        self.length -= len(batch)
        return batch

    def take_without(self, numbers: set[str]) -> PendingOrder | None:
        """The next order that has none of these numbers."""
        for organization_id, pending in self.by_organization.items():
            for found in pending:
                if numbers.isdisjoint(found.order.numbers):
                    pending.remove(found)
                    self.length -= 1
                    if pending:
                        self.by_organization.move_to_end(organization_id)
                    else:
                        del self.by_organization[organization_id]
                    return found
        return None

    def take_unwanted(self) -> list[PendingOrder]:
        """Those that nobody waits for any more."""
        unwanted = []
        for organization_id, pending in list(self.by_organization.items()):
            unwanted += [each for each in pending if not each.is_wanted]
            wanted = deque(each for each in pending if each.is_wanted)
            if wanted:
                self.by_organization[organization_id] = wanted
            else:
                del self.by_organization[organization_id]
        self.length -= len(unwanted)
        return unwanted


class _Unsettled:
    """Server processes that were left behind with a COMMIT, and may still be at it, holding its locks.

    A COMMIT that waits for a standby does not end with its connection.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._backends: set[str] = set()

    @property
    def is_full(self) -> bool:
        return len(self._backends) >= self._count_max

    def add(self, backend: str) -> None:
        self._backends.add(backend)

    async def look(self, connection: PipelinedConnection) -> None:
        """Forget those that have ended. Raises psycopg.Error, DatabaseAway."""
        if self._backends:
            asked = set(self._backends)
            (running,) = await connection.run(RUNNING(backends=_array(asked)))
            self._backends -= asked - {backend for (backend,) in running.rows}


def _array(texts: set[str]) -> str:
    return "{" + ",".join(f'"{text}"' for text in texts) + "}"


class Batcher:
    """The orders of one worker process, on `settings.lanes` connections and as many slow ones as the settings say."""

    def __init__(self, settings: Settings, database_url: str, answer_of: AnswerOf) -> None:
        self._count = 0
        self._orders_max = settings.queue_orders_max
        self._answer_of = answer_of
        self._unsettled = _Unsettled(settings.unsettled_commits_max)

        def connection() -> _Connection:
            return _Connection(settings, database_url, self._unsettled)

        self._check = connection()
        self._slow = _SlowLane(settings, answer_of, [connection() for _ in range(settings.slow_lanes)])
        self._lanes = [_Lane(settings, answer_of, self._slow, connection()) for _ in range(settings.lanes)]
        self._turns: WeakValueDictionary[tuple[Id, str], asyncio.Lock] = WeakValueDictionary()

    @property
    def is_full(self) -> bool:
        """Whether one more order would be refused at once."""
        return self._count >= self._orders_max or self._unsettled.is_full

    async def check(self) -> None:
        """Return if an order could be carried out now: every statement of its transaction works, without an order.

        Raises psycopg.Error, DatabaseAway.
        """
        lanes = [lane.connection for lane in self._lanes]
        await asyncio.gather(*(each.check_if_idle() for each in (*lanes, *self._slow.connections)))
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


class _Connection:
    """One connection for orders. One at a time uses it."""

    def __init__(self, settings: Settings, database_url: str, unsettled: _Unsettled) -> None:
        self._settings = settings
        self._connection = ReconnectingConnection(database_url, settings, (*STATEMENTS, RUNNING))
        self._unsettled = unsettled
        self._free = asyncio.Lock()

    @asynccontextmanager
    async def attempt(
        self, batch: Sequence[PendingOrder], lock_seconds: float
    ) -> AsyncIterator[tuple[PipelinedConnection, Sequence[PendingOrder], Limits]]:
        """One transaction for those orders of a batch that are still wanted when the connection is open.

        It is over before their last deadline. After a failure nothing is left of it, unless it is OutcomeUnknown.
        Raises psycopg.Error, DatabaseAway.
        """
        async with self._free:
            connection = await self._connection.get()  # may take seconds
            running = [pending for pending in batch if pending.begin()]
            limits = self._limits(running, lock_seconds)
            try:
                async with connection.at_most(limits.statement_seconds + SETTLE_SECONDS):
                    yield connection, running, limits
            except BaseException as error:
                if isinstance(error, OutcomeUnknown):
                    self._note_unknown(connection, running, error)
                for pending in running:
                    pending.undone()
                await self._recover(connection, error)
                raise

    async def check(self, seconds_max: float) -> None:
        """An order's transaction without an order. Raises psycopg.Error, DatabaseAway."""
        try:
            async with asyncio.timeout(seconds_max), self.attempt([], 0) as (connection, _, limits):
                await place(connection, [], _no_answer, limits)
                await self._unsettled.look(connection)
        except TimeoutError:
            raise DatabaseAway(f"it does not answer within {seconds_max:g} s") from None

    async def check_if_idle(self) -> None:
        """Close the connection if it is open, not in use, and lost."""
        if self._connection.is_open and not self._free.locked():
            with suppress(psycopg.Error, DatabaseAway):
                await self.check(IDLE_CHECK_SECONDS_MAX)

    async def close(self) -> None:
        await self._connection.close()

    def _limits(self, running: Sequence[PendingOrder], lock_seconds: float) -> Limits:
        seconds = self._settings.transaction_seconds_max
        if running:
            last = max(pending.deadline for pending in running)
            seconds = max(0.0, min(seconds, last - asyncio.get_running_loop().time() - CERTAIN_SECONDS))
        return Limits(min(lock_seconds, seconds), seconds)

    def _note_unknown(
        self, connection: PipelinedConnection, running: Sequence[PendingOrder], error: OutcomeUnknown
    ) -> None:
        log.warning("the outcome of %d orders is unknown: %r", len(error.placed), error.__cause__)
        self._unsettled.add(connection.backend)
        sent = {placed.order.id: placed for placed in error.placed}
        for pending in running:
            if placed := sent.get(pending.order.id):
                pending.unconfirmed(placed)

    async def _recover(self, connection: PipelinedConnection, error: BaseException) -> None:
        """Roll back, or do without this connection from now on."""
        if isinstance(error, HARMLESS):
            with suppress(psycopg.Error, DatabaseAway):
                async with connection.at_most(self._settings.connect_timeout_seconds):
                    await connection.rollback()
                return
        await connection.close()


def _no_answer(placed: Placed) -> bytes:
    raise AssertionError(placed)


class _Lane:
    def __init__(self, settings: Settings, answer_of: AnswerOf, slow: "_SlowLane", connection: _Connection) -> None:
        self.connection = connection
        self._settings = settings
        self._answer_of = answer_of
        self._slow = slow
        self._queue = _Queue()
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
            decision = decisions.get(pending, Busy())
            if isinstance(decision, Busy):
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

    def __init__(self, settings: Settings, answer_of: AnswerOf, connections: Sequence[_Connection]) -> None:
        self.connections = connections
        self._lock_seconds_max = settings.lock_timeout_ms / 1000
        self._answer_of = answer_of
        self._queue = _Queue()
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

    async def _run(self, connection: _Connection) -> None:
        while pending := await self._next():
            self._numbers.update(pending.order.numbers)
            decision = await self._decision(connection, pending)
            self._numbers.difference_update(pending.order.numbers)
            self._changed.set()
            if isinstance(decision, Busy):
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

    async def _decision(self, connection: _Connection, pending: PendingOrder) -> Decision:
        """What becomes of an order, Busy if it is to be tried again."""
        lock_seconds = min(SLOW_LOCK_SECONDS_MIN * 2**pending.tries, self._lock_seconds_max)
        pending.tries += 1
        try:
            async with connection.attempt([pending], lock_seconds) as (open_, running, limits):
                if not running:
                    return Busy()
                decision = await place_alone(open_, pending.order, self._answer_of, limits, pending.sent)
            if isinstance(decision, Busy):
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
        return Busy()
