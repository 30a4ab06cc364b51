"""The parts as processes: PostgreSQL, the server, Envoy, null servers. And their CPU and memory.

Each process runs under a guard, which ends it when the benchmark is killed.
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
from tests.support.stack import free_ports, gone, wait_until

ROOT = Path(__file__).parents[2]
RATE_LIMIT_OFF = 1_000_000  # the largest that the settings allow
SERVE = "import sys; from server.cli import main; sys.argv[1:] = ['serve']; main()"

Address = tuple[str, int]


# ---------------------------------------------------------------- PostgreSQL


@contextmanager
def work_folder() -> Iterator[Path]:
    """A temporary folder for databases and logs."""
    # In the checkout, because /tmp may be in memory, where an fsync costs nothing.
    parent = ROOT / ".data"
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for cluster in folder.glob("*/postgres-*"):  # under root it may be a link to another place
            shutil.rmtree(cluster.resolve(), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Postgres:
    """The embedded PostgreSQL, as durable as with `ordernumbers up`."""

    embedded: EmbeddedPostgres
    process: psutil.Process

    def new_database(self, name: str) -> str:
        """Create an empty database, and return its URL."""
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
class RunningService:
    """The workers of `ordernumbers serve` and, with an edge, Envoy in front of them."""

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
        """Memory of the largest worker."""
        workers = [process for process in tree(self.server) if "server.run.worker" in process.cmdline()]
        return max(process.memory_info().rss for process in workers) / 2**20


@contextmanager
def running_service(folder: Path, database_url: str, workers: int, *, edge: bool = False) -> Iterator[RunningService]:
    """The server with the settings of the environment, but on free ports and without rate limits."""
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
        _wait_until_started(lambda: "serving on" in log.read_text(), server, log)
        service = RunningService(settings, server)
        if edge:
            log = folder / "envoy.log"
            service.envoy = stack.enter_context(running(envoy_command(settings, write_config(settings)), log))
            _wait_until_started(lambda: asyncio.run(is_ready(settings)), service.envoy, log)
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
            environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} | os.environ  # as for a worker
            command = [sys.executable, "-m", "tests.bench.null", str(port)]
            process = stack.enter_context(running(command, log, environment))
            _wait_until_started(lambda port=port: _listens(port), process, log)  # type: ignore[misc]
            processes.append(process)
        yield NullServers([("127.0.0.1", port) for port in ports], processes)


@contextmanager
def running(command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[psutil.Process]:
    """Run a command under a guard, with its output in a log. Yields the process of the guard."""
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
        process.communicate()  # closes stdin, at which the guard ends the command


def _wait_until_started(started: Callable[[], bool], process: psutil.Process, log: Path) -> None:
    """Raises TimeoutError with the end of the log if the process has ended or does not start."""
    wait_until(started, is_hopeless=lambda: gone([process]), report=lambda: log.read_text(errors="replace")[-2000:])


def _listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


# ---------------------------------------------------------------- CPU


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants."""
    return [process, *process.children(recursive=True)]


@dataclass
class Meter:
    """How many cores each part uses between `start` and `stop`, and how many cores of the machine are idle."""

    parts: Mapping[str, Iterable[psutil.Process]]
    cores: dict[str, float] = field(default_factory=dict)
    idle_cores: float = 0.0

    def start(self) -> None:
        self._processes = {name: [each for top in tops for each in tree(top)] for name, tops in self.parts.items()}
        self._at_start = self._read()

    def stop(self) -> None:
        before, now = self._at_start, self._read()
        elapsed = now.pop("clock") - before["clock"]
        busy = {name: (seconds - before[name]) / elapsed for name, seconds in now.items()}
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
        # The times of children that have ended, so that processes which come and go count too.
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0
