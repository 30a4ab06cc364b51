"""A watchdog device of one host, as a named pipe: it resets the host when Patroni has not written for too long.

In production it is hardware, or the kernel's `softdog`. Patroni writes to this one by its driver `testing`.
"""

import os
import re
import select
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

POLL_SECONDS = 0.2
REBOOT_SECONDS = 10.0
"""How long a host that was reset stays away."""


class Watchdog:
    """It is armed while Patroni keeps it open, which it does on the primary."""

    def __init__(self, path: Path, kill: Callable[[], None], start: Callable[[], None]) -> None:
        """`kill` ends all that runs on the host, and `start` starts it."""
        self._kill, self._start = kill, start
        self._timeout_seconds = 0.0
        self._ends: float | None = None
        self._closed = Event()
        os.mkfifo(path, 0o600)
        # We open it for writing too, so that it has no end when Patroni closes it.
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._thread = Thread(target=self._watch, name=f"watchdog {path}", daemon=True)
        self._thread.start()

    def disarm(self) -> None:
        """Forget the time, as when the power of the host fails."""
        self._ends = None

    def close(self) -> None:
        """End the watch. No host is reset after this."""
        self._closed.set()
        self._thread.join()
        os.close(self._pipe)

    def _watch(self) -> None:
        while not self._closed.is_set():
            if select.select([self._pipe], [], [], POLL_SECONDS)[0]:
                self._read(os.read(self._pipe, 4096))
            elif self._ends is not None and time.monotonic() > self._ends:
                self._kill()
                if not self._closed.wait(REBOOT_SECONDS):
                    self._start()

    def _read(self, written: bytes) -> None:
        if timeouts := re.findall(rb"timeout=(\d+)", written):
            self._timeout_seconds = float(timeouts[-1])
        # V is how a watchdog device is closed without a reset.
        self._ends = None if written.endswith(b"V") else time.monotonic() + self._timeout_seconds
