"""The settings, and the only reader of the environment. Every limit lives here, its unit last in its name."""

import os
import re
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.errors import BadInput

PREFIX = "ORDERNUMBERS_"
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
Address = Annotated[IPv4Address | IPv6Address, BeforeValidator(ip_address)]

# Fixed by the contract.
NUMBERS_PER_ORDER_MAX = 100
REQUEST_BODY_BYTES_MAX = 65536
HEADERS_BYTES_MAX = 16384
HEADERS_MAX = 100

# What libpq reads as host, port and database when a password holds a bare @ or / would be part of it, and in messages.
_HOST = r"(?:\[[\w:.%-]+\]|[\w.%-]*)(?::[0-9]*)?"
_DATABASE_URL = re.compile(
    rf"(?!.*@.*@)postgres(?:ql)?://(?:[^@/]*@)?{_HOST}(?:,{_HOST})*(?:/[^@?]*)?(?:\?.*)?", re.ASCII
)


class Settings(BaseSettings):
    """Read from the environment: `ORDERNUMBERS_` and the name in capitals, but for `DATABASE_URL`."""

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
    """libpq URL of a PostgreSQL; without it the embedded one of `data_dir`."""
    data_dir: Path = Path(".data")
    """Where the embedded PostgreSQL and the demo's key live."""

    bind: Address = IPv4Address("127.0.0.1")
    """Address of the edge: REST and gRPC for customers."""
    grpc_bind: Address = IPv4Address("127.0.0.1")
    """Address of the server's workers, which the edge calls."""
    rest_port: Port = 8080
    """Port of the edge."""
    grpc_port: Port = 50051
    """Worker i listens on `grpc_port` + i."""
    tls_cert: Path | None = None
    """The edge's certificate chain (PEM); with it and `tls_key` the edge speaks TLS."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    edge_reflection: bool = False
    """Whether gRPC reflection is reachable through the edge too."""
    rate_limit_per_key: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Calls per second and key that one edge lets through; the rest are answered RATE_LIMITED."""
    rate_limit_per_address: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    """The same per client address (IPv6: /64). A load balancer in front is one address: set what all may send."""
    edge_connections_max: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    """Connections that one edge keeps open. Beyond half of them idle ones close sooner, beyond all new ones at once."""
    edge_memory_mb_max: Annotated[int, Field(ge=128, le=1_048_576)] = 1024
    """Memory in MiB that one edge may fill. Beyond 0.6 of it the largest calls are cut, beyond 0.9 new ones refused."""

    workers: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=lambda: max(1, os.cpu_count() or 1))
    """Server processes, one port each; as many as there are cores."""
    lanes: Annotated[int, Field(ge=1, le=16)] = 1
    """Database connections of one worker that carry out orders; an organization's orders all use the same one."""
    batch_orders_max: Annotated[int, Field(ge=1, le=1000)] = 64
    """The most orders that one transaction takes on."""
    batch_numbers_max: Annotated[int, Field(ge=NUMBERS_PER_ORDER_MAX, le=10_000)] = 500
    """The most numbers that one transaction takes on, so that it never holds its locks for long."""
    slow_lanes: Annotated[int, Field(ge=1, le=16)] = 2
    """Connections of one worker for orders that others' locks hold up, one order a transaction."""
    gather_ms: Annotated[float, Field(ge=0, le=1000)] = 10.0
    """How long a transaction waits for as many orders as the last one had; a lone order never waits."""
    queue_orders_max: Count = 2000
    """Orders that may wait in one worker; beyond, UNAVAILABLE at once."""
    unsettled_commits_max: Count = 8
    """COMMITs without an answer that one worker leaves behind; beyond, UNAVAILABLE until they have ended."""
    idempotency_hours: Annotated[float, Field(ge=1, le=8760)] = 24.0
    """How long the answer to an order is kept under its idempotency key, at least."""
    key_cache_seconds: Annotated[float, Field(ge=0, le=2)] = 2.0
    """How long a key once looked up is trusted for *refusals*; a sale always reads it again."""
    new_keys_per_second: Count = 500
    """Keys that a worker has not seen valid yet and looks up each second; calls with more are answered RATE_LIMITED."""
    deadline_seconds_max: Annotated[float, Field(gt=0, le=300)] = 30.0
    """The longest any call may take, whatever its caller allows."""
    rest_deadline_seconds: Annotated[float, Field(gt=0.1, le=300)] = 5.0
    """The longest a REST call may take."""
    lock_timeout_ms: Count = 200
    """How long one attempt of an order waits for a row somebody else has locked."""
    transaction_seconds_max: Annotated[float, Field(ge=0.5, le=60)] = 5.0
    """After that long an order's transaction is given up."""
    idle_in_transaction_timeout_ms: Count = 5000
    """After that long a frozen worker's transaction is ended and its rows are free."""
    connect_timeout_seconds: Annotated[int, Field(ge=2, le=60)] = 3
    """How long a connection to the database may take to open."""
    drain_seconds: Annotated[float, Field(ge=0, le=300)] = 3.0
    """How long a worker that was told to stop still serves calls, after it has said it will stop."""

    @field_validator("data_dir", "tls_cert", "tls_key")
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
                "is not a URL that PostgreSQL understands; in user and password an @ is written %40, / %2F, % %25"
            )
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError(f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY must be set together")
        for name, path in (("TLS_CERT", self.tls_cert), ("TLS_KEY", self.tls_key)):
            if path and not path.is_file():
                raise ValueError(f"{PREFIX}{name}: {path} is not a file")
        ports = [self.rest_port, *self.grpc_ports]
        if len(set(ports)) < len(ports) or max(ports) > 65535:
            raise ValueError(f"the ports must differ and end at 65535, and these are {ports}")
        return self

    @property
    def grpc_ports(self) -> list[int]:
        """One port a worker."""
        return [self.grpc_port + i for i in range(self.workers)]


def _is_understood(url: str) -> bool:
    """Whether libpq reads the URL, and no part of a password for a host or a database: it would be in every message."""
    try:
        conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError):
        return False
    return _DATABASE_URL.fullmatch(url) is not None


@cache
def settings() -> Settings:
    """The settings of this process. Raises BadInput naming each that is wrong, or the first that is unknown."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} - {PREFIX + "DATABASE_URL"}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise BadInput(f"{unknown[0]} is not a setting; the settings are DATABASE_URL, {', '.join(sorted(known))}")
    try:
        return Settings()
    except ValidationError as error:
        raise BadInput("; ".join(map(_told, error.errors()))) from None


def _told(error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    variable = name if name == "DATABASE_URL" else PREFIX + name.upper() if name else ""
    reason = error["msg"].removeprefix("Value error, ")
    return f"{variable}: {reason}" if variable else reason
