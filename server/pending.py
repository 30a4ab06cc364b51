"""Orders that wait for their transaction: how far each is on its way, and whose turn it is. Nothing here is awaited."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from server.errors import Code, Refusal
from server.rules.values import Decision, Id, Order, Placed

CERTAIN_SECONDS = 0.05
"""So long before its deadline an order is no longer sent: it could only time out."""


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
class Queue:
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
                    self.by_organization.move_to_end(organization_id)
                    self._remove(found)
                    return found
        return None

    def take_unwanted(self) -> list[PendingOrder]:
        """Those that nobody waits for any more."""
        queued = (each for pending in self.by_organization.values() for each in pending)
        unwanted = [each for each in queued if not each.is_wanted]  # time passes: ask each once
        for each in unwanted:
            self._remove(each)
        return unwanted

    def _remove(self, pending: PendingOrder) -> None:
        queue = self.by_organization[pending.order.organization_id]
        queue.remove(pending)
        self.length -= 1
        if not queue:
            del self.by_organization[pending.order.organization_id]
