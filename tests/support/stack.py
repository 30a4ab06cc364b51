"""The service as real processes, started and stopped as an operator does it."""

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
STOP_SECONDS_MAX = 60
WAIT_SECONDS_MAX = 60
POLL_SECONDS = 0.02
# Below the ports that the kernel gives to clients: any of those may be taken at any time.
FIRST_PORT, LAST_PORT = 21_000, 32_000


def wait_until(
    happened: Callable[[], Any],
    *,
    seconds_max: float = WAIT_SECONDS_MAX,
    is_hopeless: Callable[[], Any] = lambda: False,
    report: Callable[[], object] = lambda: "",
) -> None:
    """Poll until `happened()` is true.

    Raises TimeoutError with `report()` after `seconds_max`, or as soon as `is_hopeless()` is true.
    """
    deadline = time.monotonic() + seconds_max
    while not happened():
        if is_hopeless():
            raise TimeoutError(f"it cannot happen any more: {report()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {seconds_max:g} s: {report()}")
        time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------- settings


def free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that nobody listens on."""
    while True:
        # At random, because other test processes search at the same time.
        first = random.randrange(FIRST_PORT, LAST_PORT - count)
        with ExitStack() as opened:
            try:
                for port in range(first, first + count):
                    opened.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def local_settings(data_dir: Path, **settings) -> Settings:
    """Settings with free ports and two workers."""
    workers = settings.setdefault("workers", 2)
    first = free_ports(2 + 2 * workers)
    ports = {"rest_port": first, "edge_metrics_port": first + 1}
    ports |= {"grpc_port": first + 2, "metrics_port": first + 2 + workers}
    return Settings(**{"data_dir": data_dir, "database_url": None, "drain_ms": 1000, **ports, **settings})


# ---------------------------------------------------------------- processes


def is_worker(process: psutil.Process) -> bool:
    return "server.run.worker" in _command_line(process)


def is_envoy(process: psutil.Process) -> bool:
    return "envoy" in _command_line(process).split(" ")[0]


def is_postgres(process: psutil.Process) -> bool:
    return "postgres" in _command_line(process).split(" ")[0]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it ended after it was listed
        return ""


def kill(*processes: psutil.Process) -> None:
    """Send SIGKILL, and wait until the processes are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether none of the processes runs any more."""
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


class Up:
    """A running `ordernumbers up`, or another of its commands. It runs and logs in `folder`."""

    def __init__(
        self, settings: Settings, folder: Path, *options: str, command: str = "up", by: Sequence[str] = ()
    ) -> None:
        """`by` is a command line that runs the command, for example `env -i`."""
        self.settings = settings
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "out").open("w") as out, (folder / "err").open("a") as err:
            # The guard ends the command when the tests are killed.
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
        """Wait until the whole banner is printed."""
        self._wait_until(lambda: "The logs follow." in self.banner)
        return self

    def until_logged(self, text: str) -> None:
        self._wait_until(lambda: text in self.logs)

    def _wait_until(self, happened: Callable[[], bool]) -> None:
        wait_until(happened, is_hopeless=lambda: self.parent.poll() is not None, report=lambda: self.logs)

    def until_ended(self) -> int:
        """Wait until it has ended. Return its exit status, or 128 + the number of the signal that ended it."""
        try:
            return self.parent.wait(STOP_SECONDS_MAX)
        finally:
            self.parent.communicate()

    @property
    def process(self) -> psutil.Process:
        """The process of the command itself, the guard's child."""
        (process,) = psutil.Process(self.parent.pid).children()
        return process

    def processes(self) -> list[psutil.Process]:
        """The process of the command, and all that it started."""
        return [self.process, *self.process.children(recursive=True)]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, and return the exit status."""
        with suppress(ValueError, psutil.NoSuchProcess):  # it has ended already
            self.process.send_signal(number)
        return self.until_ended()

    def command(self, *words: str) -> Any:
        """Run another `ordernumbers` command with the same settings, and return the JSON that it prints."""
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

    def pasted(self, command: str) -> list[Any]:
        """Paste the banner's search and then its lines that start with `command` into a shell. Return the responses."""
        pasted = "\n".join(self._lines_of_the_banner(start) for start in ("FOUND=", rf"(?:\S*/)?{command} "))
        done = subprocess.run(
            ["sh", "-c", pasted], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        responses, decoder = done.stdout.strip(), json.JSONDecoder()
        found = []
        while responses:
            response, end = decoder.raw_decode(responses)
            found.append(response)
            responses = responses[end:].strip()
        return found

    def _lines_of_the_banner(self, start: str) -> str:
        (lines,) = re.findall(rf"^{start}.*?(?=\n\n)", self.banner, re.DOTALL | re.MULTILINE)
        return lines

    def __enter__(self) -> "Up":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
