"""One worker's gRPC server: its services, its health, and how it starts and stops."""

import asyncio
import logging
import random
from contextlib import suppress

import grpc
import psycopg
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ordernumbers.v1 import phone_number_service_pb2
from server.api.orders import PhoneNumberService
from server.batching import Batcher
from server.config import Settings
from server.messages import answer_of
from server.rpc.auth import Authenticator
from server.rpc.calls import Calls
from server.store.connection import DatabaseAway
from server.store.idempotency import purge
from server.store.reads import Reader

log = logging.getLogger(__name__)

SERVICE = phone_number_service_pb2.DESCRIPTOR.services_by_name["PhoneNumberService"]

HEALTH_INTERVAL_SECONDS = 1.0

PURGE_INTERVAL_SECONDS = 60.0

READ_SECONDS_MAX = 3.0

OPTIONS = [
    ("grpc.so_reuseport", 0),  # a port of its own for each worker; in use means in use
    # Beyond these gRPC itself says RESOURCE_EXHAUSTED, as if the same could be sent again. So they are larger than what
    # a call may have, and the call refuses it truly. Equal, because between the two gRPC refuses at random.
    ("grpc.max_receive_message_length", 4 * 2**20),
    ("grpc.max_metadata_size", 131072),
    ("grpc.absolute_max_metadata_size", 131072),
    # More wait at the client, at no cost to us; and streams that a client resets count until it has answered a ping, so
    # that it cannot open them without end.
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.http2.ping_on_rst_stream_percent", 10),
    # gRPC core would cancel calls at random, without a word of when to come again, long before our own queue is full.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]


class Server:
    """A running worker. Make one with `start`."""

    def __init__(self, settings: Settings, database_url: str) -> None:
        self._settings = settings
        self._database_url = database_url
        self._reader = Reader(database_url, settings, READ_SECONDS_MAX)
        self._batcher = Batcher(settings, database_url, answer_of)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=OPTIONS)
        self._draining = False
        self._chores: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, settings: Settings, database_url: str, port: int) -> "Server":
        """Serve on `settings.grpc_bind`:`port`. Raises OSError if the port is in use."""
        self = cls(settings, database_url)
        self._add_services()
        address = f"[{settings.grpc_bind}]" if settings.grpc_bind.version == 6 else str(settings.grpc_bind)
        try:
            self._server.add_insecure_port(f"{address}:{port}")
        except RuntimeError:
            await self._batcher.close()
            raise OSError(f"port {port} of {address} is in use") from None
        await self._check_health()
        await self._server.start()
        self._chores = [asyncio.create_task(chore) for chore in (self._watch_health(), self._forget_answers())]
        return self

    async def ended(self) -> None:
        """Return once gRPC has ended its server, as grpcio 1.85 does over one byte in a path that is not UTF-8."""
        with suppress(UnicodeDecodeError):
            await asyncio.shield(self._server.wait_for_termination())

    async def drain(self) -> None:
        """Stop without failing a call: say so, serve on until it is known everywhere, then finish what is under way."""
        self._draining = True
        for chore in self._chores:
            chore.cancel()
        await self._say(serving=False)
        await asyncio.sleep(self._settings.drain_ms / 1000)
        await self._server.stop(grace=self._settings.deadline_max_ms / 1000)
        await self._batcher.close()
        await self._reader.close()

    def _add_services(self) -> None:
        settings = self._settings
        authenticator = Authenticator(
            self._reader.find_keys, settings.key_cache_ms / 1000, settings.new_keys_per_second
        )
        service = PhoneNumberService(self._batcher)
        handlers = Calls(settings, authenticator, service.is_full).handlers(SERVICE, service)
        self._server.add_generic_rpc_handlers([handlers])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_SECONDS)
            await self._check_health()

    async def _forget_answers(self) -> None:
        """Each worker in a rhythm of its own; they do not get in each other's way."""
        while True:
            await asyncio.sleep(random.uniform(0, 2 * PURGE_INTERVAL_SECONDS))  # noqa: S311
            try:
                forgotten = await purge(self._database_url, self._settings)
            except (psycopg.Error, DatabaseAway) as error:
                log.warning("old idempotency keys could not be purged: %s", error)
            except Exception:  # it is tried again
                log.exception("old idempotency keys could not be purged")
            else:
                if forgotten:
                    log.info("%d old idempotency keys were purged", forgotten)

    async def _check_health(self) -> None:
        """SERVING while an order could be carried out."""
        try:
            await self._reader.check_if_idle()
            await self._batcher.check()
            serving = True
        except (psycopg.Error, DatabaseAway) as error:
            log.warning("no order could be carried out: %s", error)
            serving = False
        except Exception:  # the next look may find it better
            log.exception("it is not known whether an order could be carried out")
            serving = False
        if not self._draining:
            await self._say(serving)

    async def _say(self, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        for name in ("", SERVICE.full_name):
            await self._health.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)
