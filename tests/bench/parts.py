"""The real parts, as processes: PostgreSQL, the server, Envoy, null servers. And what they cost: CPU and memory.

Everything runs under a guard, so that it ends when the benchmark is killed.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from server.config import Settings
from server.run.edge import envoy_command, is_ready, write_config
from server.run.embedded.guard import guarded
from server.run.embedded.postgres import EmbeddedPostgres
from server.run.serve import GRPC_EXPERIMENTS, environment_of
from tests.support.stack import free_ports

ROOT = Path(__file__).parents[2]
START_SECONDS_MAX = 60
POLL_SECONDS = 0.05
RATE_LIMIT_OFF = 1_000_000
SERVE = "import sys; from server.cli import main; sys.argv[1:] = ['serve']; main()"

Address = tuple[str, int]


# ---------------------------------------------------------------- PostgreSQL


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder that is removed in the end. In the checkout, since /tmp may lie in memory, where an fsync is nothing."""
    parent = ROOT / ".data"
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for cluster in folder.glob("*/postgres-*"):  # under root it may lie elsewhere
            shutil.rmtree(cluster.resolve(), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Postgres:
    """The embedded PostgreSQL, as durable as in `ordernumbers up`."""

    embedded: EmbeddedPostgres
    process: psutil.Process

    def new_database(self, name: str) -> str:
        """URL of a new, empty database."""
        with psycopg.connect(self.embedded.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return self.embedded.url(name)

    def drop_database(self, name: str) -> None:
        with psycopg.connect(self.embedded.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]

    def settings(self, *names: str) -> dict[str, str]:
        with psycopg.connect(self.embedded.url("postgres")) as connection:
            return {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in names}  # type: ignore


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    before = set(psutil.Process().children())
    with EmbeddedPostgres(folder / "postgres") as embedded:
        (guard,) = set(psutil.Process().children()) - before
        yield Postgres(embedded, guard)


# ---------------------------------------------------------------- server, Envoy, null servers


@dataclass
class Service:
    """The workers of `ordernumbers serve` and, with an edge, Envoy before them."""

    settings: Settings
    server: psutil.Process
    envoy: psutil.Process | None = None

    @property
    def workers(self) -> list[Address]:
        return [("127.0.0.1", port) for port in self.settings.grpc_ports]

    @property
    def edge(self) -> Address:
        return ("127.0.0.1", self.settings.rest_port)

    @property
    def worker_rss_mb_max(self) -> float:
        """Of the largest worker."""
        workers = [process for process in tree(self.server) if "server.run.worker" in process.cmdline()]
        return max(process.memory_info().rss for process in workers) / 2**20


@contextmanager
def running_service(folder: Path, database_url: str, workers: int, *, edge: bool = False) -> Iterator[Service]:
    """The server as the environment's settings say, but on free ports, with so many workers, and no rate limit."""
    folder.mkdir(parents=True)
    first = free_ports(1 + workers)
    settings = Settings(
        database_url=database_url,
        data_dir=folder,
        rest_port=first,
        grpc_port=first + 1,
        workers=workers,
        rate_limit_per_key=RATE_LIMIT_OFF,
        rate_limit_per_address=RATE_LIMIT_OFF,
        drain_ms=0,
    )
    with ExitStack() as stack:
        log = folder / "server.log"
        serve = [sys.executable, "-P", "-c", SERVE]
        server = stack.enter_context(running(serve, log, environment_of(settings)))
        wait_until(lambda: "serving on" in log.read_text(), server, log)
        service = Service(settings, server)
        if edge:
            log = folder / "envoy.log"
            service.envoy = stack.enter_context(running(envoy_command(settings, write_config(settings)), log))
            wait_until(lambda: asyncio.run(is_ready(settings)), service.envoy, log)
        yield service


@dataclass
class NullServers:
    """As many processes as the server has workers."""

    workers: list[Address]
    processes: list[psutil.Process]


@contextmanager
def running_null_servers(folder: Path, count: int) -> Iterator[NullServers]:
    folder.mkdir(parents=True)
    first = free_ports(count)
    ports = range(first, first + count)
    with ExitStack() as stack:
        processes = []
        for port in ports:
            log = folder / f"{port}.log"
            environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} | os.environ  # as a worker has it
            command = [sys.executable, "-m", "tests.bench.null", str(port)]
            process = stack.enter_context(running(command, log, environment))
            wait_until(lambda port=port: _listens(port), process, log)  # type: ignore[misc]
            processes.append(process)
        yield NullServers([("127.0.0.1", port) for port in ports], processes)


@contextmanager
def running(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[psutil.Process]:
    """A process under a guard (which is what is returned), its output in a log."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            guarded(command, grace_seconds=30),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment and dict(environment),
            start_new_session=True,
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.communicate()  # closes its lifeline and waits


def wait_until(happened: Callable[[], bool], process: psutil.Process, log: Path) -> None:
    """Raises RuntimeError with the end of the log when it does not happen."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while not happened():
        gone = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        if gone or time.monotonic() > deadline:
            raise RuntimeError("it did not start: " + log.read_text(errors="replace")[-2000:])
        time.sleep(POLL_SECONDS)


def _listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


# ---------------------------------------------------------------- what they cost


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    return [process, *process.children(recursive=True)]


@dataclass
class Meter:
    """How many cores each part keeps busy between `began` and `ended`, and how many of the machine's are idle.

    Processes that come and go meanwhile count with their parents.
    """

    parts: Mapping[str, Iterable[psutil.Process]]
    cores: dict[str, float] = field(default_factory=dict)
    idle_cores: float = 0.0

    def began(self) -> None:
        self._processes = {name: [each for top in tops for each in tree(top)] for name, tops in self.parts.items()}
        self._at_first = self._read()

    def ended(self) -> None:
        at_first, now = self._at_first, self._read()
        elapsed = now.pop("clock") - at_first["clock"]
        busy = {name: (seconds - at_first[name]) / elapsed for name, seconds in now.items()}
        self.idle_cores = busy.pop("idle")
        self.cores = busy

    def _read(self) -> dict[str, float]:
        times = psutil.cpu_times()
        idle_seconds = times.idle + getattr(times, "iowait", 0.0)
        spent = {name: sum(map(_cpu_seconds, processes)) for name, processes in self._processes.items()}
        return {**spent, "idle": idle_seconds, "clock": time.monotonic()}


def _cpu_seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0
