"""One host: the programs that run on it, and what can happen to it."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deploy.ha.network import Network
from deploy.ha.watchdog import Watchdog
from server.run.embedded.guard import guarded

STOP_SECONDS_MAX = 30
KILL_SECONDS_MAX = 60
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Program:
    """A program of a host: its full path and arguments."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass
class Host:
    """A host. Its programs log into `folder`, each into a file with its name."""

    name: str
    network: Network
    folder: Path
    programs: Sequence[Program]
    watchdog: Watchdog | None = None
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """The watchdog starts and kills programs from a thread of its own."""

    def watch(self) -> None:
        """Give the host a watchdog device, `watchdog` in its folder."""
        self.watchdog = Watchdog(self.folder / "watchdog", self.kill, self.start)

    @property
    def address(self) -> str:
        return self.network.address(self.name)

    @property
    def is_complete(self) -> bool:
        """Whether all its programs run."""
        return all(self.runs(program.name) for program in self.programs)

    def runs(self, name: str) -> bool:
        return name in self._running and self._running[name].poll() is None

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start those of its programs that do not run. `environment` is added to that of each."""
        with self._lock:
            for program in self.programs:
                if not self.runs(program.name):
                    self._start(program, environment or {})

    def stop(self) -> None:
        """End its programs in their opposite order, then all that is left."""
        for program in reversed(self.programs):
            self.stop_program(program.name)
        self.kill()

    def stop_program(self, name: str) -> None:
        """End one program as its operator would."""
        if running := self._running.pop(name, None):
            running.communicate()  # closes the stdin of its guard, which ends it

    def kill_program(self, name: str) -> None:
        """Send SIGKILL to one program and what it has started."""
        guard = psutil.Process(self._running[name].pid)
        processes = [*guard.children(recursive=True), guard]
        self._signal([process.pid for process in processes], signal.SIGKILL)
        self._running.pop(name).communicate()

    def kill(self) -> None:
        """Send SIGKILL to every process of the host, as when its power fails."""
        deadline = time.monotonic() + KILL_SECONDS_MAX
        with self._lock:
            while pids := self.pids():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"processes of {self.name} do not end: {pids}")
                self._signal(pids, signal.SIGKILL)
                time.sleep(POLL_SECONDS)
            for name in list(self._running):
                self.stop_program(name)  # it has ended already
            if self.watchdog:
                self.watchdog.disarm()

    def freeze(self) -> None:
        """Stop every process of the host until `thaw`."""
        self._signal(self.pids(), signal.SIGSTOP)

    def freeze_program(self, name: str) -> None:
        """Stop one program until `thaw`. What it has started in a session of its own goes on."""
        guard = psutil.Process(self._running[name].pid)
        self._signal([process.pid for process in guard.children()], signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(self.pids(), signal.SIGCONT)

    def cut(self) -> None:
        """Drop all its packets until `join`."""
        self.network.cut(self.name)

    def join(self) -> None:
        self.network.join(self.name)

    def pids(self) -> list[int]:
        """Its processes, but no zombies."""
        listed = set(self.network.pids(self.name, self.folder))
        for running in self._running.values():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(running.pid)
                listed |= {process.pid, *(child.pid for child in process.children(recursive=True))}
        found = []
        for pid in sorted(listed):
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found.append(pid)
        return found

    def _start(self, program: Program, environment: Mapping[str, str]) -> None:
        self.stop_program(program.name)  # one that has ended by itself
        command = guarded(list(program.command), grace_seconds=STOP_SECONDS_MAX)
        with (self.folder / f"{program.name}.log").open("ab") as log:
            self._running[program.name] = subprocess.Popen(
                self.network.inside(self.name, command),
                stdin=subprocess.PIPE,  # when it closes, the guard ends the program
                stdout=log,
                stderr=log,
                cwd="/",
                env={**program.environment, **environment},
                start_new_session=True,
            )

    def _signal(self, pids: Sequence[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
