"""The settings, the limits of the contract, and the only reader of the environment. Durations end in `_ms`."""

import os
import re
from collections import Counter
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import OperatorError
from server.server_addresses import ServerAddress, read_servers

PREFIX = "ORDERNUMBERS_"
WITHOUT_PREFIX = {"DATABASE_URL", "DATABASE_URL_FILE"}
Port = Annotated[int, Field(ge=1, le=65535)]
PortOrNone = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Address = Annotated[IPv4Address | IPv6Address, BeforeValidator(ip_address)]

# Fixed by the contract.
NUMBERS_PER_ORDER_MAX = 100
REQUEST_BODY_BYTES_MAX = 65536
HEADERS_BYTES_MAX = 16384
HEADERS_MAX = 100

# A bare @ or / in a password would make libpq read the rest of it as a host, and print that in its messages.
_HOST = r"(?:\[[\w:.%-]+\]|[\w.%-]*)(?::[0-9]*)?"
_DATABASE_URL = re.compile(
    rf"(?!.*@.*@)postgres(?:ql)?://(?:[^@/]*@)?{_HOST}(?:,{_HOST})*(?:/[^@?]*)?(?:\?.*)?", re.ASCII
)
_DNS_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.I | re.ASCII
)
_HTTP_URL = re.compile(r"https?://(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?/?", re.ASCII)


class Settings(BaseSettings):
    """Read from the environment: `ORDERNUMBERS_` and the name in capitals. Only `DATABASE_URL` and
    `DATABASE_URL_FILE` have no prefix.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        env_ignore_empty=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # a URL may hold a password
    )

    database_url: Annotated[
        str | None, Field(validation_alias=AliasChoices("DATABASE_URL", "database_url"), repr=False)
    ] = None
    """libpq URL of a PostgreSQL. Without it: the embedded one of `data_dir`."""
    database_url_file: Annotated[
        Path | None, Field(validation_alias=AliasChoices("DATABASE_URL_FILE", "database_url_file"))
    ] = None
    """A file with that URL, in place of `DATABASE_URL`. So that no secret is in the environment."""
    data_dir: Path = Path(".data")
    """Folder of the embedded PostgreSQL and of the demo's key."""

    bind: Address = IPv4Address("127.0.0.1")
    """Address of the edge, which serves REST and gRPC to customers."""
    grpc_bind: Address = IPv4Address("127.0.0.1")
    """Address of the workers. The edge calls them there."""
    rest_port: Port = 8080
    """Port of the edge."""
    grpc_port: Port = 50051
    """Worker i listens on `grpc_port` + i."""
    metrics_bind: Address = IPv4Address("127.0.0.1")
    """Address of the metrics pages of workers and edge. They have no TLS and ask for no key."""
    metrics_port: PortOrNone = 9464
    """Worker i serves its metrics on `metrics_port` + i. 0: it serves none."""
    edge_metrics_port: PortOrNone = 9463
    """The edge serves its metrics here. 0: it serves none."""
    servers: str | None = None
    """The workers that the edge calls, as `host:port`, `host:port-port` or `dns:name:port`, separated by commas."""
    grpc_tls_cert: Path | None = None
    """Certificate chain (PEM) that a worker shows to edges, and an edge to workers. With it they use TLS."""
    grpc_tls_key: Path | None = None
    """The private key of `grpc_tls_cert` (PEM)."""
    grpc_tls_ca: Path | None = None
    """Certificates (PEM) that the other side's certificate must be signed by."""
    grpc_tls_name: str = "ordernumbers-servers"
    """The DNS name that the certificate of each worker has."""
    grpc_insecure: bool = False
    """Whether workers may listen beyond this machine without TLS."""
    tls_cert: Path | None = None
    """The edge's certificate chain (PEM). With it and `tls_key` the edge uses TLS."""
    tls_key: Path | None = None
    """The private key of `tls_cert` (PEM)."""
    edge_reflection: bool = False
    """Whether the edge also serves gRPC reflection."""
    edge_docs: bool = True
    """Whether the edge also serves the reference page at /docs, and its document at /openapi.json."""
    rate_limit_per_key: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Calls per second and API key that one edge accepts. It refuses more with RATE_LIMITED."""
    rate_limit_per_address: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    """The same per client address (IPv6: per /64). A load balancer counts as one address."""
    rate_limit_service: str | None = None
    """`host:port` of a rate limit service that all edges share (envoyproxy/ratelimit). Their own limits hold too."""
    edge_connections_max: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    """Open connections per edge. Above half of it idle ones close sooner. At the limit new ones close at once."""
    edge_memory_mb_max: Annotated[int, Field(ge=128, le=1_048_576)] = 1024
    """Memory of one edge, in MiB. Above 60 % the largest calls are reset, and above 90 % new ones are refused."""

    otlp_endpoint: str | None = None
    """Base URL of a receiver of traces (OTLP over HTTP), as http://127.0.0.1:4318. With it sampled calls are traced."""
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share of calls that the edge samples. Those who call a worker themselves decide by their `traceparent`."""

    workers: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=lambda: max(1, os.cpu_count() or 1))
    """Worker processes, with one port each."""
    order_connections: Annotated[int, Field(ge=1, le=16)] = 1
    """Database connections per worker that carry out batches. All orders of an organization use the same one."""
    batch_orders_max: Annotated[int, Field(ge=1, le=1000)] = 64
    """Most orders in one transaction."""
    batch_numbers_max: Annotated[int, Field(ge=NUMBERS_PER_ORDER_MAX, le=10_000)] = 500
    """Most numbers in one transaction. It limits how long a transaction holds its locks."""
    retry_connections: Annotated[int, Field(ge=1, le=16)] = 2
    """Database connections per worker for orders that their batch could not carry out. One order per transaction."""
    batch_linger_ms: Annotated[int, Field(ge=0, le=1000)] = 10
    """How long a batch waits to be as large as the one before. It does not wait after a batch of one order."""
    orders_in_progress_max: Count = 2000
    """Orders in progress in one worker, waiting or running. It refuses more with UNAVAILABLE."""
    write_connections: Annotated[int, Field(ge=1, le=16)] = 2
    """Database connections per worker for all other writes: holds, bulk orders, changes, releases. One at a time."""
    writes_in_progress_max: Count = 500
    """Such writes in progress in one worker, waiting or running. It refuses more with UNAVAILABLE."""
    read_connections: Annotated[int, Field(ge=1, le=16)] = 2
    """Database connections per worker for reads."""
    reads_in_progress_max: Count = 500
    """Reads in progress in one worker, waiting or running. It refuses more with UNAVAILABLE."""
    unsettled_commits_max: Count = 8
    """Unsettled commits per worker, which may still run in the database. At this many it refuses all writes."""
    idempotency_ms: Annotated[int, Field(ge=86_400_000, le=31_536_000_000)] = 86_400_000
    """How long a response is kept under its idempotency key. At least one day."""
    key_cache_ms: Annotated[int, Field(ge=0, le=2000)] = 2000
    """How long a worker caches an API key. The transaction of a sale always reads it again."""
    unknown_keys_per_second: Count = 500
    """Look-ups per second and worker of keys that it has not found valid yet. It refuses more with RATE_LIMITED."""
    deadline_max_ms: Annotated[int, Field(ge=1, le=300_000)] = 30_000
    """Longest time for any call, whatever deadline its caller sets."""
    rest_deadline_ms: Annotated[int, Field(gt=100, le=300_000)] = 5000
    """Longest time for a REST call."""
    rest_ms: Annotated[int, Field(ge=0, le=31_536_000_000)] = 2_592_000_000
    """How long a released number waits for its former owner only. Then every organization can order it."""
    held_numbers_max: Count = 1000
    """How many numbers an organization may hold. It refuses more with LIMIT_EXCEEDED."""
    lock_timeout_ms: Count = 200
    """How long one attempt waits for a row that another transaction has locked."""
    transaction_max_ms: Annotated[int, Field(ge=500, le=60_000)] = 5000
    """Longest time for the transaction of an order or another write."""
    isolation: Literal["read committed", "serializable"] = "read committed"
    """Isolation level of transactions. `serializable` is for engines that have no other. All workers need the same."""
    idle_in_transaction_timeout_ms: Count = 5000
    """How long a worker may be frozen in a transaction. Then PostgreSQL ends it, which frees its rows."""
    connect_timeout_ms: Annotated[int, Field(ge=2000, le=60_000, multiple_of=1000)] = 3000
    """Longest time to connect to one host of the database URL. Whole seconds."""
    drain_ms: Annotated[int, Field(ge=0, le=300_000)] = 3000
    """How long a stopping worker or edge still accepts calls. Also the pause between two workers at SIGHUP."""

    @field_validator(
        "data_dir", "database_url_file", "tls_cert", "tls_key", "grpc_tls_cert", "grpc_tls_key", "grpc_tls_ca"
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("must be a postgresql:// URL")
        if url is not None and not _is_understood(url):
            raise ValueError(
                "is not a URL that PostgreSQL understands. In user and password write @ as %40, / as %2F, % as %25"
            )
        return url

    @field_validator("servers")
    @classmethod
    def _addresses(cls, servers: str | None) -> str | None:
        if servers is not None:
            read_servers(servers)
        return servers

    @field_validator("rate_limit_service")
    @classmethod
    def _one_address(cls, service: str | None) -> str | None:
        if service is not None and ("-" in service.rpartition(":")[2] or len(read_servers(service)) != 1):
            raise ValueError("must be one address, as host:port")
        return service

    @field_validator("grpc_tls_name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not _DNS_NAME.fullmatch(name):
            raise ValueError("must be a DNS name")
        return name

    @field_validator("otlp_endpoint")
    @classmethod
    def _http(cls, url: str | None) -> str | None:
        found = _HTTP_URL.fullmatch(url) if url is not None else None
        if url is not None and not (found and 1 <= int(found[1] or 443) <= 65535):
            raise ValueError("must be a URL such as http://127.0.0.1:4318, without a path")
        return url and url.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for names in (("tls_cert", "tls_key"), ("grpc_tls_cert", "grpc_tls_key", "grpc_tls_ca")):
            paths = {variable_of(name): getattr(self, name) for name in names}
            if None in paths.values() and any(paths.values()):
                raise ValueError(f"{' and '.join(paths)} must be set together")
            for variable, path in paths.items():
                if path and not path.is_file():
                    raise ValueError(f"{variable}: {path} is not a file")
        self._check_ports()
        return self

    def _check_ports(self) -> None:
        ports = {
            "rest_port": [self.rest_port],
            "grpc_port": self.grpc_ports,
            "metrics_port": self.metrics_ports,
            "edge_metrics_port": [self.edge_metrics_port] if self.edge_metrics_port else [],
        }
        uses = Counter(chain.from_iterable(ports.values()))
        wrong = [
            f"{variable_of(name)} has {', '.join(map(str, found))}"
            for name, found in ports.items()
            if any(uses[port] > 1 or port > 65535 for port in found)
        ]
        if wrong:
            raise ValueError(f"the ports must differ and be at most 65535, but {' and '.join(wrong)}")

    @property
    def server_addresses(self) -> list[ServerAddress]:
        """Where the edge finds the workers."""
        if self.servers is not None:
            return read_servers(self.servers)
        return [ServerAddress(str(reachable(self.grpc_bind)), port) for port in self.grpc_ports]

    @property
    def grpc_ports(self) -> list[int]:
        """One port per worker."""
        return [self.grpc_port + i for i in range(self.workers)]

    @property
    def metrics_ports(self) -> list[int]:
        """One port per worker, or none at all."""
        return [self.metrics_port + i for i in range(self.workers)] if self.metrics_port else []


def _is_understood(url: str) -> bool:
    """Whether libpq reads the URL, and takes no part of a password for a host or a database."""
    try:
        conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError):
        return False
    return _DATABASE_URL.fullmatch(url) is not None


def variable_of(setting: str) -> str:
    """The environment variable of a setting."""
    name = setting.upper()
    return name if name in WITHOUT_PREFIX else PREFIX + name


def host_and_port(host: IPv4Address | IPv6Address, port: int) -> str:
    """`127.0.0.1:8080`, `[::1]:8080`."""
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"


def reachable(host: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Where this machine reaches what listens on that address: loopback for the unspecified one."""
    if not host.is_unspecified:
        return host
    return IPv4Address("127.0.0.1") if host.version == 4 else IPv6Address("::1")


@cache
def settings() -> Settings:
    """The settings of this process. Raises OperatorError that names the first unknown one, or all wrong ones."""
    known = {variable_of(name) for name in Settings.model_fields} - WITHOUT_PREFIX
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        names = ", ".join([*sorted(WITHOUT_PREFIX), *sorted(known)])
        raise OperatorError(f"{unknown[0]} is not a setting. The settings are {names}")
    try:
        found = Settings()
        return _with_url_of_file(found, found.database_url_file) if found.database_url_file else found
    except ValidationError as error:
        raise OperatorError("; ".join(map(_problem, error.errors()))) from None


def _with_url_of_file(found: Settings, path: Path) -> Settings:
    if found.database_url is not None:
        raise OperatorError("DATABASE_URL and DATABASE_URL_FILE must not both be set")
    try:
        url = path.read_text().strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text"
        raise OperatorError(f"DATABASE_URL_FILE: {path} cannot be read: {reason}") from None
    return Settings(database_url=url)


def _problem(error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    reason = error["msg"].removeprefix("Value error, ")
    return f"{variable_of(name)}: {reason}" if name else reason
