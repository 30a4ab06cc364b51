"""The gRPC server of one worker: its services, its health, its drain."""

import asyncio
import logging
import random
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from errno import EADDRINUSE

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ordernumbers.v1 import phone_number_service_pb2
from server import metrics
from server.admission import Shared
from server.api.service import PhoneNumberService
from server.batching import Batcher
from server.config import Settings, host_and_port
from server.reading import Reads
from server.rpc.auth import Authenticator
from server.rpc.calls import Calls
from server.rpc.tls import server_credentials
from server.store.connection import DatabaseAway
from server.store.idempotency import purge
from server.store.reads import KEYS, Principal, Reader
from server.writing import Writer

log = logging.getLogger(__name__)

SERVICE = phone_number_service_pb2.DESCRIPTOR.services_by_name["PhoneNumberService"]
HEALTH_INTERVAL_SECONDS, AWAY_INTERVAL_SECONDS = 1.0, 0.25
"""How often a worker tests that an order could be carried out, and how often while none could be."""
PURGE_INTERVAL_SECONDS = 60.0
READ_SECONDS_MAX = 3.0

LISTENERS = 16
"""How many gRPC servers share the port of a worker. Connections are spread over them by the kernel.

A server of grpc.aio accepts one new call in about two turns of the event loop. With one server, the flood of one
organization delayed the calls of all. docs/benchmark.md has the figures.
"""

OPTIONS = [
    ("grpc.so_reuseport", 1),  # for the LISTENERS of a worker. Another worker does not get its port, see `_port_guard`
    # Above these gRPC core itself sends RESOURCE_EXHAUSTED, which suggests a retry. So they are larger than our own
    # limits, for which a call sends the true code. They are equal, because between two limits gRPC refuses at random.
    ("grpc.max_receive_message_length", 4 * 2**20),
    ("grpc.max_metadata_size", 131072),
    ("grpc.absolute_max_metadata_size", 131072),
    # Further calls wait at the client, which costs us nothing. A stream that a client resets counts until it has
    # answered a ping. So it cannot open streams without end.
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.http2.ping_on_rst_stream_percent", 10),
    # gRPC core would cancel calls at random long before our own queue is full, and without a Retry-After.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]


class Server:
    """A running worker. Made by `start`."""

    def __init__(self, settings: Settings, database_url: str, worker: int) -> None:
        self._settings = settings
        self._database_url = database_url
        shared = Shared(settings)
        self._keys = Reader(database_url, settings, KEYS)
        self._reads = Reads(settings, database_url, worker)
        self._authenticator = Authenticator(
            self._find_keys, settings.key_cache_ms / 1000, settings.unknown_keys_per_second
        )
        self._batcher = Batcher(settings, database_url, shared)
        self._writer = Writer(settings, database_url, shared)
        self._health = health.aio.HealthServicer()
        self._servers = [grpc.aio.server(options=OPTIONS) for _ in range(LISTENERS)]
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, settings: Settings, database_url: str, port: int) -> "Server":
        """Serve on `settings.grpc_bind`:`port`. Raises OSError if the port is in use."""
        self = cls(settings, database_url, port - settings.grpc_port)
        self._add_services()
        metrics.before_scrape.append(self._set_metrics)
        try:
            with _port_guard(str(settings.grpc_bind), port):
                for server in self._servers:
                    # Not the same credentials for all: gRPC reads the first certificate of each only once.
                    if credentials := server_credentials(settings):
                        server.add_secure_port(host_and_port(settings.grpc_bind, port), credentials)
                    else:
                        server.add_insecure_port(host_and_port(settings.grpc_bind, port))
        except (OSError, RuntimeError) as error:
            await self._close()
            is_other = isinstance(error, OSError) and error.errno != EADDRINUSE
            reason = f"cannot be used: {error}" if is_other else "is in use"
            raise OSError(f"port {port} of {settings.grpc_bind} {reason}") from None
        await self._check_health()
        await asyncio.gather(*(server.start() for server in self._servers))
        self._tasks = [asyncio.create_task(task) for task in (self._watch_health(), self._purge_responses())]
        return self

    async def wait_until_ended(self) -> None:
        """Return when gRPC has ended one of its servers."""
        # grpcio 1.85 does that when one byte in a path is not UTF-8.
        # Shielded: after one of these waits was cancelled, `stop` would not wait for the running calls.
        ends = [asyncio.shield(server.wait_for_termination()) for server in self._servers]
        ended, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ended:
            with suppress(UnicodeDecodeError):
                end.result()

    async def drain(self) -> None:
        """Stop without failing a call: report NOT_SERVING, serve until callers know it, finish the running calls."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        await self._report(serving=False)
        await asyncio.sleep(self._settings.drain_ms / 1000)
        grace_seconds = self._settings.deadline_max_ms / 1000
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))
        await self._close()

    async def _close(self) -> None:
        await self._batcher.close()
        await self._writer.close()
        await self._reads.close()
        await self._keys.close()

    def _add_services(self) -> None:
        settings = self._settings
        service = PhoneNumberService(settings, self._batcher, self._writer, self._reads)
        handlers = Calls(settings, self._authenticator, service.is_full).handlers(SERVICE, service)
        names = [SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME]
        for server in self._servers:
            server.add_generic_rpc_handlers([handlers])
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            reflection.enable_server_reflection(names, server)

    async def _find_keys(self, digests: Collection[bytes]) -> dict[bytes, Principal]:
        return await self._keys.find_keys(digests, READ_SECONDS_MAX)

    async def _watch_health(self) -> None:
        serving = True
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_SECONDS if serving else AWAY_INTERVAL_SECONDS)
            serving = await self._check_health()

    async def _purge_responses(self) -> None:
        while True:
            # At random, so that the workers do not all purge at the same moment.
            await asyncio.sleep(random.uniform(0, 2 * PURGE_INTERVAL_SECONDS))  # noqa: S311
            try:
                purged = await purge(self._database_url, self._settings)
                metrics.PURGES["ok",].value += 1
                metrics.PURGED.value += purged
            except DatabaseAway as error:
                metrics.PURGES["failed",].value += 1
                log.warning("old idempotency keys could not be purged: %s", error)
            except Exception:  # it is tried again
                metrics.PURGES["failed",].value += 1
                log.exception("old idempotency keys could not be purged")
            else:
                if purged:
                    log.info("%d old idempotency keys were purged", purged)

    async def _check_health(self) -> bool:
        """Report SERVING if an order could be carried out. Return whether that is so."""
        try:
            await asyncio.gather(self._keys.check_if_idle(), self._reads.check_if_idle(), self._writer.check_if_idle())
            await self._batcher.check()
            serving = True
        except DatabaseAway as error:
            log.warning("no order could be carried out: %s", error)
            serving = False
        except Exception:  # the next check may succeed
            log.exception("the health check failed")
            serving = False
        metrics.DATABASE_UP.value = serving
        if not self._draining:
            await self._report(serving)
        return serving

    def _set_metrics(self) -> None:
        """Set what is not counted in server/metrics.py, because that would cost more."""
        settings = self._settings
        for kind, part, count_max in (
            ("orders", self._batcher, settings.orders_in_progress_max),
            ("writes", self._writer, settings.writes_in_progress_max),
            ("reads", self._reads, settings.reads_in_progress_max),
        ):
            metrics.IN_PROGRESS[kind,].value = part.in_progress
            metrics.IN_PROGRESS_MAX[kind,].value = count_max
        for queue, length in (self._batcher.waiting | self._writer.waiting).items():
            metrics.QUEUE_LENGTH[queue,].value = length
        metrics.KEYS["cached",].value = self._authenticator.cache_hits

    async def _report(self, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        for name in ("", SERVICE.full_name):
            await self._health.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)


@contextmanager
def _port_guard(host: str, port: int) -> Iterator[None]:
    """A context in which no other worker can take the port. Raises OSError if another process has it."""
    ((family, *_, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with socket.socket(family, socket.SOCK_STREAM) as guard:
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections do not count
        guard.bind(address)
        # Now our servers can share the port with this socket. The guard of another worker cannot.
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield
