"""Writes that wait for their transaction, orders and others: the stage of each, and the queue. Nothing here awaits."""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from server import metrics
from server.errors import Code, Refusal
from server.rules.values import Decision, Done, Id, Order, Outcome, Placed, Write

SEND_SECONDS_MIN = 0.05
"""A write is not sent when less time is left before its deadline. It could only time out."""


class Stage(Enum):
    """How far a write has come."""

    QUEUED = auto()
    """The database has nothing of it."""
    KEY_IN_USE = auto()
    """The same, and another transaction is using its idempotency key."""
    RUNNING = auto()
    """A transaction with it is running."""
    UNCONFIRMED = auto()
    """Its write was sent, and the outcome is unknown."""
    RESPONDED = auto()
    """Its caller has a response. It must not be sent any more."""


# The code at the deadline. UNAVAILABLE promises that the write is certainly not carried out.
CODE_AT_DEADLINE = {
    Stage.QUEUED: Code.UNAVAILABLE,
    Stage.KEY_IN_USE: Code.IDEMPOTENCY_IN_PROGRESS,
    Stage.RUNNING: Code.TIMEOUT,
    Stage.UNCONFIRMED: Code.TIMEOUT,
}


@dataclass(slots=True, eq=False)
class PendingWrite:
    """A waiting write. Its caller gets one response, through `respond`. `on_end` is called when all is done."""

    write: Order | Write
    deadline: float
    """In the event loop's time."""
    caller: "asyncio.Future[Any]"
    """What the caller waits for. It is done when the caller has left."""
    respond: Callable[[Decision | Outcome], None]
    on_end: Callable[["PendingWrite"], None]
    stage: Stage = Stage.QUEUED
    sent: Placed | Done | None = None
    """What was sent to be written, while the write is UNCONFIRMED."""
    tries: int = 0
    """Attempts alone in a transaction."""
    times_away: int = 0
    """Those of them that found no database."""
    queued_at: float = 0.0
    """When it was queued, of `time.monotonic`."""

    @property
    def is_wanted(self) -> bool:
        """Whether it should still be sent."""
        left = self.deadline - asyncio.get_running_loop().time()
        return self.stage is not Stage.RESPONDED and not self.caller.done() and left > SEND_SECONDS_MIN

    def begin(self) -> bool:
        """Note that a transaction sends it now. False if it must not. There must be no `await` before the sending."""
        if not self.is_wanted:
            return False
        if self.stage is not Stage.UNCONFIRMED:
            self.stage = Stage.RUNNING
        return True

    def note_rollback(self, stage: Stage = Stage.QUEUED) -> None:
        """Note that the attempt has left nothing in the database."""
        if self.stage not in (Stage.RESPONDED, Stage.UNCONFIRMED):
            self.stage = stage

    def note_unknown(self, sent: Placed | Done) -> None:
        """Note that the attempt may have written `sent`."""
        self.sent = sent
        if self.stage is not Stage.RESPONDED:
            self.stage = Stage.UNCONFIRMED

    def expire(self) -> None:
        """Respond at the deadline. A transaction that is running goes on."""
        if self.stage is not Stage.RESPONDED:
            self._respond(Refusal(CODE_AT_DEADLINE[self.stage]))

    def end(self, decision: Decision | Outcome | None = None) -> None:
        """Respond with the decision. None: the deadline has passed, or the caller has left."""
        if decision is None:
            self.expire()
        else:
            self._respond(decision)
        _count(self, decision)
        self.on_end(self)

    def _respond(self, decision: Decision | Outcome) -> None:
        if self.stage is Stage.RESPONDED:
            return
        self.stage = Stage.RESPONDED
        if self.caller.done():
            return
        try:
            self.respond(decision)
        except Exception as error:  # it must not stop the writes of others
            self.caller.set_exception(error)


def _count(pending: PendingWrite, decision: Decision | Outcome | None) -> None:
    """Count what became of a write."""
    placed = decision if isinstance(decision, Placed) else decision.result if isinstance(decision, Done) else None
    if isinstance(placed, Placed):
        metrics.ORDERS_PLACED.value += 1
        metrics.NUMBERS_SOLD.value += len(placed.order.numbers)
    if pending.sent is not None:
        metrics.UNKNOWN_OUTCOMES[_end_of_unknown(pending, decision),].value += 1


def _end_of_unknown(pending: PendingWrite, decision: Decision | Outcome | None) -> str:
    if decision is pending.sent:
        return "carried_out"
    # TIMEOUT is never decided. It means that the attempt to find out has failed.
    is_open = decision is None or (isinstance(decision, Refusal) and decision.code is Code.TIMEOUT)
    return "never_known" if is_open else "decided_again"


@dataclass(slots=True)
class Queue:
    """Pending writes by organization. Organizations take turns."""

    name: str = "orders"
    """As the metrics name it."""
    by_organization: OrderedDict[Id, deque[PendingWrite]] = field(default_factory=OrderedDict)
    length: int = 0

    def put(self, pending: PendingWrite) -> None:
        self.length += 1
        pending.queued_at = time.monotonic()
        self.by_organization.setdefault(pending.write.organization_id, deque()).append(pending)

    def take(self, orders_max: int, numbers_max: int, share_max: int) -> list[PendingWrite]:
        """Take the next batch: at least one write, if there is any, and at most `share_max` of one organization."""
        batch: list[PendingWrite] = []
        numbers = 0
        shares: Counter[Id] = Counter()
        at_share_max: dict[Id, deque[PendingWrite]] = {}
        while self.by_organization and len(batch) < orders_max:
            organization_id, pending = self.by_organization.popitem(last=False)
            numbers += len(pending[0].write.numbers)
            if batch and numbers > numbers_max:
                self.by_organization[organization_id] = pending
                self.by_organization.move_to_end(organization_id, last=False)
                break
            batch.append(pending.popleft())
            shares[organization_id] += 1
            if pending:
                # Back at the end: the others come first, so that no organization's flood delays them.
                goes_back_to = at_share_max if shares[organization_id] == share_max else self.by_organization
                goes_back_to[organization_id] = pending
        self.by_organization.update(at_share_max)
        self._note_taken(batch)
        return batch

    def take_without(self, numbers: set[str]) -> PendingWrite | None:
        """Take the next write that has none of these numbers."""
        for organization_id, pending in self.by_organization.items():
            for found in pending:
                if numbers.isdisjoint(found.write.numbers):
                    self.by_organization.move_to_end(organization_id)
                    self._remove(found)
                    return found
        return None

    def take_unwanted(self) -> list[PendingWrite]:
        """Take those that should not be sent any more."""
        queued = (each for pending in self.by_organization.values() for each in pending)
        unwanted = [each for each in queued if not each.is_wanted]  # asked once: the result changes with time
        for each in unwanted:
            self._remove(each)
        return unwanted

    def _remove(self, pending: PendingWrite) -> None:
        queue = self.by_organization[pending.write.organization_id]
        queue.remove(pending)
        self._note_taken([pending])
        if not queue:
            del self.by_organization[pending.write.organization_id]

    def _note_taken(self, taken: Sequence[PendingWrite]) -> None:
        self.length -= len(taken)
        waits, now = metrics.QUEUE_SECONDS[self.name,], time.monotonic()
        for pending in taken:
            waits.observe(now - pending.queued_at)
