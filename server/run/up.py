"""`ordernumbers up`: everything on this machine, in the foreground: PostgreSQL, workers, Envoy, and a demo.

Started in that order, each kept alive, and stopped in the opposite order, so that no call is dropped. Should this
process be killed instead, every other one notices by its lifeline and ends.
"""

import asyncio
import errno
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.exc import OperationalError

from server.config import PREFIX, Settings
from server.errors import OperatorError
from server.log import log_as_json
from server.run.edge import CONTRACT, Edge, is_ready
from server.run.embedded.demo import KEY_FILE, available_numbers, make_demo
from server.run.embedded.postgres import EmbeddedPostgres
from server.run.envoy_admin import admin_socket
from server.run.serve import workers
from server.run.supervisor import supervised, until_stopped
from server.store import migrations
from server.store.engine import admin_engine

PORT_WAIT_SECONDS = 2.0
"""What is left of a run that was killed frees its ports within that time."""
POLL_SECONDS = 0.1


def run(settings: Settings, *, demo: bool | None = None, migrate: bool = False) -> None:
    """Run everything until SIGTERM, SIGINT or the death of our parent; with `demo`, there is something to order.

    Uses the database of DATABASE_URL if that is set, else one of its own in the data folder, which it migrates. In the
    former it changes nothing that it was not told to. Raises OperatorError saying why it cannot start.
    """
    log_as_json()
    is_own = settings.database_url is None
    asyncio.run(until_stopped(_up(settings, demo=is_own if demo is None else demo, migrate=is_own or migrate)))


async def _up(settings: Settings, *, demo: bool, migrate: bool) -> None:
    began = time.monotonic()
    parent_watch = asyncio.create_task(_stop_with(os.getppid()))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(_database(settings))
        await asyncio.to_thread(_prepare, url, migrate=migrate)
        example = await asyncio.to_thread(_example, url, settings.data_dir) if demo else Example([], WITHOUT_DEMO)
        # No grace for being told of: when they are stopped the edge is gone already.
        servers = workers(settings.model_copy(update={"drain_ms": 0}), url)
        await stack.enter_async_context(supervised(servers))
        await stack.enter_async_context(supervised([Edge(settings, is_ready)]))
        print(_banner(settings, example, time.monotonic() - began), flush=True)
        await parent_watch


async def _stop_with(parent: int) -> None:
    """Ends us when our parent dies, unless we were told (nohup) to outlive it."""
    while os.getppid() == parent or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()


# ---------------------------------------------------------------- the database


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[str]:
    """The URL of the database: the given one, or a PostgreSQL of our own that runs meanwhile."""
    if settings.database_url is not None:
        await _require_free_ports(settings)
        yield settings.database_url
        return
    postgres = EmbeddedPostgres(settings.data_dir)
    try:
        postgres.claim()
        await _require_free_ports(settings)
        async with supervised([PostgresProcess(postgres)]):
            yield postgres.url()
    finally:
        await asyncio.to_thread(postgres.stop)


class PostgresProcess:
    """The embedded PostgreSQL, as a part that is kept alive."""

    name = "PostgreSQL"

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres

    async def start(self) -> None:
        await asyncio.to_thread(self._postgres.start)

    async def wait(self) -> int:
        while (status := self._postgres.exit_status) is None:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        return status

    async def stop(self) -> None:
        await asyncio.to_thread(self._postgres.stop)


class Example(NamedTuple):
    """What the banner's calls order, and why if there is nothing to."""

    numbers: list[str]
    reason: str = ""


WITHOUT_DEMO = "There is no demo here. `ordernumbers up --demo` makes one in a database without organizations."


def _prepare(url: str, *, migrate: bool) -> None:
    """Check that the database has our schema. Raises OperatorError with what to do when it has not."""
    engine = admin_engine(url)
    try:
        if migrate:
            migrations.upgrade(engine)
        migrations.require(engine)
    except OperationalError as error:
        raise OperatorError(f"the database does not answer: {error.orig}") from None


def _example(url: str, data_dir: Path) -> Example:
    engine = admin_engine(url)
    data_dir.mkdir(parents=True, exist_ok=True)
    if not make_demo(engine, data_dir):
        return Example([], "There is no demo: the database has organizations, and none of them is in our data folder.")
    numbers = available_numbers(engine, 3)
    enough = Example(numbers)
    return enough if len(numbers) == 3 else Example([], "The demo's numbers are sold; import more: inventory import")


# ---------------------------------------------------------------- ports


async def _require_free_ports(settings: Settings) -> None:
    """Raises OperatorError naming the first port that is not free and its setting."""
    deadline = time.monotonic() + PORT_WAIT_SECONDS
    wanted = [
        (str(settings.bind), settings.rest_port, "REST_PORT"),
        *((str(settings.grpc_bind), port, "GRPC_PORT") for port in settings.grpc_ports),
    ]
    for host, port, name in wanted:
        while problem := _problem(host, port):
            if problem.errno != errno.EADDRINUSE:
                raise OperatorError(f"cannot listen on port {port} of {host} ({PREFIX}{name}): {problem.strerror}")
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"port {port} of {host} is in use; stop what uses it, or set {PREFIX}{name} to another"
                )
            await asyncio.sleep(POLL_SECONDS)


def _problem(host: str, port: int) -> OSError | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            return error
    return None


# ---------------------------------------------------------------- the banner


def _banner(settings: Settings, example: Example, seconds: float) -> str:
    edge_address = _address(settings.bind, settings.rest_port)
    scheme = "https" if settings.tls_cert else "http"
    workers_at = ", ".join(_address(settings.grpc_bind, port) for port in settings.grpc_ports)
    return f"""
OrderNumbers is ready, after {seconds:.1f} s.

  REST and gRPC   {scheme}://{edge_address}   (GET /healthz)
  workers         {workers_at}   (gRPC, with reflection)
  Envoy's admin   curl --unix-socket {_quoted(admin_socket(settings))} http://localhost/
  data folder     {_shown(settings.data_dir)}

{_calls(settings, example, edge_address) if example.numbers else example.reason}

Ctrl-C stops everything. What follows are the logs.
"""


def _calls(settings: Settings, example: Example, address: str) -> str:
    key = f'"Authorization: Bearer $(cat {_quoted(settings.data_dir / KEY_FILE)})"'
    ca = f" --cacert {_quoted(settings.tls_cert)}" if settings.tls_cert else ""
    scheme, how = ("https", ca) if settings.tls_cert else ("http", " --http2-prior-knowledge")
    beside = Path(sys.executable).with_name("buf")
    buf = _quoted(beside) if beside.exists() else "buf"
    schema = _quoted(CONTRACT / "descriptors.binpb")
    bodies = [f"""-d '{{"numbers": ["{number}"]}}'""" for number in example.numbers]
    method = "ordernumbers.v1.PhoneNumberService/OrderNumbers"
    return f"""Order a number:

curl{ca} {scheme}://{address}/v1/phone-numbers/orders \\
  -H {key} \\
  -H 'Content-Type: application/json' {bodies[0]}

The same call over gRPC, with buf or with grpcurl:

{buf} curl --protocol grpc{how} --schema {schema} \\
  -H {key} {bodies[1]} \\
  {scheme}://{address}/{method}

grpcurl -plaintext -H {key} \\
  {bodies[2]} {_address(settings.grpc_bind, settings.grpc_port)} {method}"""


def _address(host: object, port: int) -> str:
    """Where to call what listens on that address."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(str(host), str(host))  # noqa: S104
    return f"[{reached}]:{port}" if ":" in reached else f"{reached}:{port}"


def _shown(path: Path) -> str:
    """The path as one would type it in the folder where we were started."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _quoted(path: Path) -> str:
    return shlex.quote(_shown(path))
