"""Everything on this machine as real processes, started and stopped as an operator does."""

import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from server.config import Settings
from server.run.embedded.guard import guarded
from server.run.serve import environment_of

COMMAND = str(Path(sys.executable).with_name("ordernumbers"))
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60
WAIT_SECONDS_MAX = 60
FIRST_PORT, LAST_PORT = 21_000, 32_000
"""Below the ports that the kernel gives to clients, any of which may be taken at any time."""


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on; at random, as other tests look for theirs."""
    while True:
        first = random.randrange(FIRST_PORT, LAST_PORT - count)
        with ExitStack() as opened:
            try:
                for port in range(first, first + count):
                    opened.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first


def local_settings(data_dir: Path, **settings) -> Settings:
    """Settings with ports of their own and two workers."""
    workers = settings.setdefault("workers", 2)
    first = free_ports(1 + workers)
    ports = {"rest_port": first, "grpc_port": first + 1}
    return Settings(**{"data_dir": data_dir, "database_url": None, "drain_ms": 1000, **ports, **settings})


def wait_until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether none of them runs any more."""
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


class Up:
    """A running `ordernumbers up`, or another of its commands. Its logs are in `folder`, where it was started too."""

    def __init__(
        self, settings: Settings, folder: Path, *options: str, command: str = "up", by: Sequence[str] = ()
    ) -> None:
        """`by` is the command line that shall run it, if it is not to be run directly."""
        self.settings = settings
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "out").open("w") as out, (folder / "err").open("a") as err:
            # Under a guard, so that it ends when the tests are killed.
            self.parent = subprocess.Popen(
                guarded([*by, COMMAND, command, *options], grace_seconds=STOP_SECONDS_MAX),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=environment_of(settings),
                start_new_session=True,
            )

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.rest_port}"

    @property
    def banner(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def logs(self) -> str:
        return (self.folder / "err").read_text()

    def until_ready(self) -> "Up":
        deadline = time.monotonic() + START_SECONDS_MAX
        while "What follows are the logs." not in self.banner:
            assert self.parent.poll() is None, f"it ended: {self.logs}"
            assert time.monotonic() < deadline, f"it was not ready in time: {self.logs}"
            time.sleep(0.05)
        return self

    def until_ended(self) -> int:
        """Its exit status, 128 + the signal's number if one ended it."""
        try:
            return self.parent.wait(STOP_SECONDS_MAX)
        finally:
            self.parent.communicate()

    @property
    def process(self) -> psutil.Process:
        """`up` itself, the guard's child."""
        (process,) = psutil.Process(self.parent.pid).children()
        return process

    def processes(self) -> list[psutil.Process]:
        """`up` and all that it started."""
        return [self.process, *self.process.children(recursive=True)]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop, and return its exit status."""
        with suppress(ValueError, psutil.NoSuchProcess):  # it has ended already
            self.process.send_signal(number)
        return self.until_ended()

    def command(self, *words: str) -> Any:
        """What another `ordernumbers` command with the same settings answers."""
        done = subprocess.run(
            [COMMAND, *words, "--json"],
            env=environment_of(self.settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def pasted(self, command: str) -> subprocess.CompletedProcess[str]:
        """What the banner's lines that begin with `command` do when they are pasted into a shell."""
        (lines,) = re.findall(rf"^(?:\S*/)?{command} .*?(?=\n\n)", self.banner, re.DOTALL | re.MULTILINE)
        return subprocess.run(
            ["sh", "-c", lines], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )

    def __enter__(self) -> "Up":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
