"""The gRPC server of one worker: its services, its health, its drain."""

import asyncio
import logging
import random
from collections.abc import Collection
from contextlib import suppress

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ordernumbers.v1 import phone_number_service_pb2
from server.admission import Shared
from server.api.service import PhoneNumberService
from server.batching import Batcher
from server.config import Settings, host_and_port
from server.reading import Reads
from server.rpc.auth import Authenticator
from server.rpc.calls import Calls
from server.store.connection import DatabaseAway
from server.store.idempotency import purge
from server.store.reads import KEYS, Principal, Reader
from server.writing import Writer

log = logging.getLogger(__name__)

SERVICE = phone_number_service_pb2.DESCRIPTOR.services_by_name["PhoneNumberService"]
HEALTH_INTERVAL_SECONDS = 1.0
PURGE_INTERVAL_SECONDS = 60.0
READ_SECONDS_MAX = 3.0

OPTIONS = [
    ("grpc.so_reuseport", 0),  # each worker has its own port, and a second one on it must fail
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
        self._batcher = Batcher(settings, database_url, shared)
        self._writer = Writer(settings, database_url, shared)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=OPTIONS)
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, settings: Settings, database_url: str, port: int) -> "Server":
        """Serve on `settings.grpc_bind`:`port`. Raises OSError if the port is in use."""
        self = cls(settings, database_url, port - settings.grpc_port)
        self._add_services()
        try:
            self._server.add_insecure_port(host_and_port(settings.grpc_bind, port))
        except RuntimeError:
            await self._close()
            raise OSError(f"port {port} of {settings.grpc_bind} is in use") from None
        await self._check_health()
        await self._server.start()
        self._tasks = [asyncio.create_task(task) for task in (self._watch_health(), self._purge_responses())]
        return self

    async def wait_until_ended(self) -> None:
        """Return when gRPC has ended its server."""
        # grpcio 1.85 does that when one byte in a path is not UTF-8.
        with suppress(UnicodeDecodeError):
            await asyncio.shield(self._server.wait_for_termination())

    async def drain(self) -> None:
        """Stop without failing a call: report NOT_SERVING, serve until callers know it, finish the running calls."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        await self._report(serving=False)
        await asyncio.sleep(self._settings.drain_ms / 1000)
        await self._server.stop(grace=self._settings.deadline_max_ms / 1000)
        await self._close()

    async def _close(self) -> None:
        await self._batcher.close()
        await self._writer.close()
        await self._reads.close()
        await self._keys.close()

    def _add_services(self) -> None:
        settings = self._settings
        authenticator = Authenticator(self._find_keys, settings.key_cache_ms / 1000, settings.unknown_keys_per_second)
        service = PhoneNumberService(settings, self._batcher, self._writer, self._reads)
        handlers = Calls(settings, authenticator, service.is_full).handlers(SERVICE, service)
        self._server.add_generic_rpc_handlers([handlers])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)

    async def _find_keys(self, digests: Collection[bytes]) -> dict[bytes, Principal]:
        return await self._keys.find_keys(digests, READ_SECONDS_MAX)

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
            await self._check_health()

    async def _purge_responses(self) -> None:
        while True:
            # At random, so that the workers do not all purge at the same moment.
            await asyncio.sleep(random.uniform(0, 2 * PURGE_INTERVAL_SECONDS))  # noqa: S311
            try:
                purged = await purge(self._database_url, self._settings)
            except DatabaseAway as error:
                log.warning("old idempotency keys could not be purged: %s", error)
            except Exception:  # it is tried again
                log.exception("old idempotency keys could not be purged")
            else:
                if purged:
                    log.info("%d old idempotency keys were purged", purged)

    async def _check_health(self) -> None:
        """Report SERVING if an order could be carried out."""
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
        if not self._draining:
            await self._report(serving)

    async def _report(self, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        for name in ("", SERVICE.full_name):
            await self._health.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)
