"""The parts as processes: PostgreSQL, the server, Envoy, and what they are compared with. And their CPU and memory.

Each process runs under a guard, which ends it when the benchmark is killed.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from deploy.ha.network import Network
from server.config import Settings, variable_of
from server.errors import OperatorError
from server.run.edge import envoy_command, is_ready
from server.run.edge_config import Config, edge_config
from server.run.embedded.guard import guarded
from server.run.embedded.postgres import EmbeddedPostgres
from server.run.serve import GRPC_EXPERIMENTS
from tests.support.stack import free_ports, gone, wait_until

ROOT = Path(__file__).parents[2]
RATE_LIMIT_OFF = 1_000_000  # the largest that the settings allow
WORKER_PORT = 50051  # on a host with an address of its own
KEEP_ALIVE_SECONDS = 300  # as at the edge, because the generator may keep a connection without a call
ORDERNUMBERS = "from server.cli import main; main()"

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


# ---------------------------------------------------------------- the server and Envoy


@dataclass
class RunningService:
    """The workers of `ordernumbers serve` and, with an edge, Envoy in front of them. Each host has a server."""

    settings: Settings
    servers: list[psutil.Process]
    envoy: psutil.Process | None = None

    @property
    def workers(self) -> list[Address]:
        return [(address.host, address.port) for address in self.settings.server_addresses]

    @property
    def edge(self) -> Address:
        return ("127.0.0.1", self.settings.rest_port)

    @property
    def worker_rss_mb_max(self) -> float:
        """Memory of the largest worker."""
        processes = [process for server in self.servers for process in tree(server)]
        workers = [process for process in processes if "server.run.worker" in process.cmdline()]
        return max(process.memory_info().rss for process in workers) / 2**20


@dataclass(frozen=True)
class Tree:
    """The project's files at a commit. Their processes use the installed packages of this checkout."""

    root: Path = ROOT

    def command(self, *arguments: str) -> list[str]:
        """`ordernumbers` of this tree, with these arguments."""
        return [sys.executable, "-P", "-c", ORDERNUMBERS, *arguments]

    def environment(self, **settings: object) -> dict[str, str]:
        """Our environment, with this tree's modules and these settings. Another tree may not know all of ours."""
        return {
            **{name: value for name, value in os.environ.items() if name != "DATABASE_URL"},
            "PYTHONPATH": os.pathsep.join((str(self.root), str(self.root / "gen"))),
            **{variable_of(name): str(value) for name, value in settings.items()},
        }

    def migrate(self, database_url: str) -> None:
        """Bring an empty database to the schema of this tree."""
        command = self.command("db", "upgrade")
        environment = self.environment(database_url=database_url)
        subprocess.run(command, env=environment, cwd=self.root, check=True, capture_output=True, timeout=120)

    def violations(self, database_url: str) -> list[str]:
        """What `ordernumbers check` of this tree finds."""
        command = self.command("check", "--json")
        environment = self.environment(database_url=database_url)
        checked = subprocess.run(command, env=environment, cwd=self.root, capture_output=True, text=True, check=False)
        return [] if checked.returncode == 0 else [checked.stdout.strip() or checked.stderr.strip()]


OURS = Tree()


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Tree]:
    """The tree at a revision of git, in a folder that does not exist yet. Raises OperatorError for an unknown one."""
    command = ["git", "worktree", "add", "--detach", str(folder), revision]
    added = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if added.returncode:
        raise OperatorError(f"git cannot check out {revision}: {added.stderr.strip()}")
    try:
        yield Tree(folder)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


@contextmanager
def running_service(
    folder: Path, database_url: str, workers: int, *, edge: bool = False, tree: Tree = OURS
) -> Iterator[RunningService]:
    """The server with the settings of the environment, but on free ports and without rate limits."""
    folder.mkdir(parents=True)
    first = free_ports(2 + 2 * workers)
    changed = _common_settings(folder, database_url) | {
        "rest_port": first,
        "grpc_port": first + 1,
        "workers": workers,
    }
    if (tree.root / "server/metrics.py").exists():  # an older tree does not know these settings
        changed |= {"metrics_port": first + 1 + workers, "edge_metrics_port": first + 1 + 2 * workers}
    settings, environment = Settings(**changed), tree.environment(**changed)  # type: ignore[arg-type]
    with ExitStack() as stack:
        server = stack.enter_context(_running_server(tree.command("serve"), folder / "server.log", environment))
        service = RunningService(settings, [server])
        if edge:
            service.envoy = stack.enter_context(_running_edge(tree, settings, environment))
        yield service


@contextmanager
def running_hosts(
    folder: Path, database_url: str, network: Network, hosts: Sequence[str], workers_each: int
) -> Iterator[RunningService]:
    """The server on each of these hosts, and an edge that finds them by `ORDERNUMBERS_SERVERS`, on this one.

    They reach the embedded PostgreSQL by its Unix socket.
    """
    folder.mkdir(parents=True)
    # Another host has a loopback interface of its own, so nobody here would see the metrics.
    common = _common_settings(folder, database_url) | {"metrics_port": 0, "edge_metrics_port": 0}
    ports = f"{WORKER_PORT}-{WORKER_PORT + workers_each - 1}"
    addresses = ",".join(f"{network.address(host)}:{ports}" for host in hosts)
    changed = common | {"rest_port": free_ports(1), "servers": addresses}
    service = RunningService(Settings(**changed), [])  # type: ignore[arg-type]
    with ExitStack() as stack:
        for host in hosts:
            environment = OURS.environment(
                **common,
                grpc_bind=network.address(host),
                grpc_port=WORKER_PORT,
                grpc_insecure=True,
                workers=workers_each,
            )
            command = network.inside(host, OURS.command("serve"))
            server = _running_server(command, folder / f"{host}.log", environment)
            service.servers.append(stack.enter_context(server))
        service.envoy = stack.enter_context(_running_edge(OURS, service.settings, OURS.environment(**changed)))
        yield service


def _common_settings(folder: Path, database_url: str) -> dict[str, object]:
    return {
        "database_url": database_url,
        "data_dir": folder,
        "rate_limit_per_key": RATE_LIMIT_OFF,
        "rate_limit_per_address": RATE_LIMIT_OFF,
        "unknown_keys_per_second": RATE_LIMIT_OFF,  # the load begins with all its API keys at once
        "drain_ms": 0,
    }


@contextmanager
def _running_server(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    with running(command, log, environment) as server:
        _wait_until_started(lambda: "serving on" in log.read_text(), server, log)
        yield server


@contextmanager
def _running_edge(tree: Tree, settings: Settings, environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    log = settings.data_dir / "envoy.log"
    with running(tree.command("edge"), log, environment) as envoy:
        _wait_until_started(lambda: asyncio.run(is_ready(settings)), envoy, log)
        yield envoy


# ---------------------------------------------------------------- what they are compared with


@dataclass
class NullServers:
    """As many processes as the server has workers."""

    workers: list[Address]
    processes: list[psutil.Process]


@contextmanager
def running_null_servers(folder: Path, count: int, *options: str) -> Iterator[NullServers]:
    folder.mkdir(parents=True)
    first = free_ports(count)
    ports = range(first, first + count)
    with ExitStack() as stack:
        processes = []
        for port in ports:
            log = folder / f"{port}.log"
            environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} | os.environ  # as for a worker
            command = [sys.executable, "-m", "tests.bench.null", str(port), *options]
            process = stack.enter_context(running(command, log, environment))
            _wait_until_started(lambda port=port: _listens(port), process, log)  # type: ignore[misc]
            processes.append(process)
        yield NullServers([("127.0.0.1", port) for port in ports], processes)


@dataclass
class RestServer:
    """A process that takes orders over REST."""

    address: Address
    process: psutil.Process


@contextmanager
def running_bare_edge(folder: Path, settings: Settings) -> Iterator[RestServer]:
    """Another Envoy in front of the same workers, with the same configuration, but without our Lua."""
    folder.mkdir(parents=True)
    port = free_ports(1)
    settings = settings.model_copy(
        update={"rest_port": port, "edge_metrics_port": 0, "edge_docs": False, "data_dir": folder}
    )
    config_path, log = folder / "envoy.json", folder / "envoy.log"
    config_path.write_text(json.dumps(_without_lua(edge_config(settings))))
    with running(envoy_command(settings, config_path), log) as envoy:
        _wait_until_started(lambda: asyncio.run(is_ready(settings)), envoy, log)
        yield RestServer(("127.0.0.1", port), envoy)


def _without_lua(config: Config) -> Config:
    """The configuration without each HTTP filter that runs Lua. Changes `config`."""
    (listener,) = config["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    http = chain["filters"][0]["typed_config"]
    http["http_filters"] = [each for each in http["http_filters"] if "filters.http.lua." not in json.dumps(each)]
    return config


@contextmanager
def running_peer(folder: Path, database_url: str, workers: int) -> Iterator[RestServer]:
    """The service in peer.py, on a database with our schema."""
    folder.mkdir(parents=True)
    port, log = free_ports(1), folder / "peer.log"
    options = {"--port": port, "--workers": workers, "--timeout-keep-alive": KEEP_ALIVE_SECONDS}
    words = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-m", "uvicorn", "tests.bench.peer:app", *words]
    # As for our workers: a plan that was made while a table was small would always scan it.
    environment = {**os.environ, "DATABASE_URL": f"{database_url}&options=-cenable_seqscan%3Doff"}
    with running(command, log, environment) as process:
        _wait_until_started(lambda: log.read_text().count("startup complete") == workers, process, log)
        yield RestServer(("127.0.0.1", port), process)


# ---------------------------------------------------------------- processes


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
        spent = {name: sum(map(cpu_seconds, processes)) for name, processes in self._processes.items()}
        return {**spent, "idle": idle_seconds, "clock": time.monotonic()}


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and of its children that have ended. 0 if it has ended itself."""
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        # The times of children that have ended, so that processes which come and go count too.
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0
