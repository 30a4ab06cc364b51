"""`ordernumbers up`: PostgreSQL, the workers, Envoy and a demo on this machine, in the foreground.

They start in that order and stop in the opposite order, so that no call is dropped. If this process is killed, each
child process sees that its stdin closes, and exits.
"""

import asyncio
import errno
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy.exc import OperationalError

from server.config import PREFIX, Settings
from server.errors import OperatorError
from server.log import log_as_json
from server.run.banner import EXAMPLE_NUMBERS, banner
from server.run.edge import Edge, is_ready
from server.run.embedded.demo import available_numbers, make_demo
from server.run.embedded.postgres import EmbeddedPostgres
from server.run.serve import workers
from server.run.supervisor import supervised, until_stopped
from server.store import migrations
from server.store.engine import admin_engine

PORT_WAIT_SECONDS = 2.0
"""How long we wait for a port. The processes of a run that was killed free their ports within this time."""
POLL_SECONDS = 0.1


def run(settings: Settings, *, demo: bool | None = None, migrate: bool = False) -> None:
    """Run everything until SIGTERM, SIGINT, or the death of our parent. Raises OperatorError if it cannot start.

    Without DATABASE_URL it runs an embedded PostgreSQL, migrates it, and creates the demo unless `demo` is False. With
    DATABASE_URL it changes that database only if asked to: it migrates if `migrate`, and creates the demo if `demo`.
    """
    log_as_json()
    asyncio.run(until_stopped(_up(settings, demo=demo, migrate=migrate)))


async def _up(settings: Settings, *, demo: bool | None, migrate: bool) -> None:
    started_at = time.monotonic()
    parent_watch = asyncio.create_task(_stop_when_parent_dies(os.getppid()))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(_database(settings))
        await asyncio.to_thread(_prepare_schema, url, migrate=migrate or settings.database_url is None)
        no_demo_reason = await asyncio.to_thread(_prepare_demo, settings, url, demo)
        # The edge stops before the workers, so no client is left to learn that they drain.
        servers = workers(settings.model_copy(update={"drain_ms": 0}), url)
        await stack.enter_async_context(supervised(servers))
        await stack.enter_async_context(supervised([Edge(settings, is_ready)]))
        print(banner(settings, no_demo_reason, time.monotonic() - started_at), flush=True)
        await parent_watch


async def _stop_when_parent_dies(parent: int) -> None:
    # An ignored SIGHUP means that we were started with nohup, which asks us to outlive our parent.
    while os.getppid() == parent or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()


# ---------------------------------------------------------------- the database


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[str]:
    """Yield the URL of the database. Without DATABASE_URL the embedded PostgreSQL runs during this context."""
    if settings.database_url is not None:
        await _require_free_ports(settings)
        yield settings.database_url
        return
    postgres = EmbeddedPostgres(settings.data_dir)
    try:
        # If another `ordernumbers up` runs here, the message about the folder helps more than one about ports.
        postgres.lock_data_dir()
        await _require_free_ports(settings)
        async with supervised([PostgresProcess(postgres)]):
            yield postgres.url()
    finally:
        await asyncio.to_thread(postgres.stop)


class PostgresProcess:
    """The embedded PostgreSQL as a managed process."""

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


def _prepare_schema(url: str, *, migrate: bool) -> None:
    """Migrate the database if `migrate`. Raises OperatorError if it does not have this version's schema."""
    engine = admin_engine(url)
    try:
        if migrate:
            migrations.upgrade(engine)
        migrations.require(engine)
    except OperationalError as error:
        raise OperatorError(f"cannot reach the database: {error.orig}") from None


def _prepare_demo(settings: Settings, url: str, demo: bool | None) -> str:
    """Create the demo if it is wanted and missing. Return why there are no numbers for the banner, or an empty text."""
    if demo is False:
        return "Demo skipped (--no-demo)."
    if demo is None and settings.database_url is not None:
        return (
            "Demo skipped, because DATABASE_URL is set. "
            "`ordernumbers up --demo` creates one in a database without organizations."
        )
    engine = admin_engine(url)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if not make_demo(engine, settings.data_dir):
        return "Demo skipped, because the database has organizations but no demo of this data folder."
    if len(available_numbers(engine, EXAMPLE_NUMBERS)) < EXAMPLE_NUMBERS:
        return "The demo's numbers are sold. Import more with `ordernumbers inventory import`."
    return ""


# ---------------------------------------------------------------- ports


async def _require_free_ports(settings: Settings) -> None:
    """Raise OperatorError if a port is not free. The message names the port and its setting."""
    deadline = time.monotonic() + PORT_WAIT_SECONDS
    ports = [
        (str(settings.bind), settings.rest_port, "REST_PORT"),
        *((str(settings.grpc_bind), port, "GRPC_PORT") for port in settings.grpc_ports),
        *((str(settings.metrics_bind), port, "METRICS_PORT") for port in settings.metrics_ports),
    ]
    if settings.edge_metrics_port:
        ports.append((str(settings.metrics_bind), settings.edge_metrics_port, "EDGE_METRICS_PORT"))
    for host, port, name in ports:
        while error := _listen_error(host, port):
            if error.errno != errno.EADDRINUSE:
                raise OperatorError(f"cannot listen on port {port} of {host} ({PREFIX}{name}): {error.strerror}")
            if time.monotonic() > deadline:
                raise OperatorError(
                    f"port {port} of {host} is in use. Stop the process that uses it, or set {PREFIX}{name} to another"
                )
            await asyncio.sleep(POLL_SECONDS)


def _listen_error(host: str, port: int) -> OSError | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Without SO_REUSEADDR, connections of an earlier run in TIME_WAIT would count as use of the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            return error
    return None
