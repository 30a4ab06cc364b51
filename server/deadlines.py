"""One timer for many deadlines. A timer for each call would cost more than the rest of its wait."""

import asyncio
from typing import Protocol

PAUSE_SECONDS = 0.01
"""The shortest time between two looks at all that wait."""


class Expiring(Protocol):
    """What waits until its deadline."""

    @property
    def deadline(self) -> float:
        """In the event loop's time."""

    def expire(self) -> None:
        """Called once, at the deadline or a few milliseconds later."""


class Deadlines:
    """Expires what is still waiting at its deadline."""

    def __init__(self) -> None:
        self._waiting: set[Expiring] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def add(self, expiring: Expiring) -> None:
        self._waiting.add(expiring)
        if self._timer is None or expiring.deadline < self._timer_at:
            self._set_timer(expiring.deadline)

    def discard(self, expiring: Expiring) -> None:
        self._waiting.discard(expiring)

    def _set_timer(self, when: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer_at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for expiring in [each for each in self._waiting if each.deadline <= now]:
            if expiring in self._waiting:  # not discarded by one that has just expired
                self._waiting.remove(expiring)
                expiring.expire()
        # The one with the first deadline may have left meanwhile. So the timer may be too early, but never too late.
        if self._waiting and self._timer is None:
            self._set_timer(max(now + PAUSE_SECONDS, min(each.deadline for each in self._waiting)))
