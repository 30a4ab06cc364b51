"""One worker's grpc.aio server: what every call goes through, health, reflection, and the way it stops.

A call: request id, key, scope, parsing, rules, the method, one line in the log. It is one function around the method
rather than a chain of grpc.aio interceptors, each of which would cost a task and a context a call. Messages are parsed
here and not by grpc, which would tell callers UNKNOWN and the text of the exception.
"""

import asyncio
import logging
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
import psycopg
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from ulid import ULID
from uuid_utils import uuid7

from ordernumbers.v1 import phone_number_service_pb2
from ordernumbers.v1.errors_pb2 import Error, ErrorResponse, InventoryShortage
from server.auth import Authenticator, required_scope
from server.batching import Answer, Batcher
from server.config import HEADERS_BYTES_MAX, HEADERS_MAX, REQUEST_BODY_BYTES_MAX, Settings
from server.errors import Code, Refusal
from server.service import Call, PhoneNumberService, answer_of
from server.store.idempotency import purge
from server.store.pipeline import DatabaseAway
from server.store.queries import Principal, Reader
from server.validation import validate

log = logging.getLogger(__name__)

SERVICE = phone_number_service_pb2.DESCRIPTOR.services_by_name["PhoneNumberService"]
DOMAIN = "ordernumbers"
ULID_FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
ANSWER_SECONDS = 0.1  # kept of a call's time for the way back, so that its caller hears TIMEOUT from us
HEALTH_INTERVAL_SECONDS = 1.0
PURGE_INTERVAL_SECONDS = 60.0
READ_SECONDS_MAX = 3.0
FRAME_BYTES = 5  # gRPC's, around a message: it counts, as it does at the edge

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

Context = grpc.aio.ServicerContext[bytes, bytes]
Method = Callable[[Any, Call], Awaitable[Answer]]


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
        await asyncio.sleep(self._settings.drain_seconds)
        await self._server.stop(grace=self._settings.deadline_seconds_max)
        await self._batcher.close()
        await self._reader.close()

    def _add_services(self) -> None:
        settings = self._settings
        authenticator = Authenticator(self._reader.find_keys, settings.key_cache_seconds, settings.new_keys_per_second)
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


class Calls:
    """What every call of our own services goes through."""

    def __init__(self, settings: Settings, authenticator: Authenticator, is_full: Callable[[str], bool]) -> None:
        self._seconds_max = settings.deadline_seconds_max
        self._is_full = is_full
        self._authenticator = authenticator
        self._log = CallLog()

    def handlers(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Handlers for every method of a service. Raises AttributeError, by name, for one the servicer lacks."""
        handlers: dict[str, Any] = {
            # Not unary_unary: gRPC would wait without end for a message that never comes, before it calls us.
            method.name: grpc.stream_unary_rpc_method_handler(self._handler(method, getattr(servicer, method.name)))
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _handler(self, method: MethodDescriptor, behaviour: Method) -> Any:
        name = method.full_name
        scope = required_scope(method)
        request_class = GetMessageClass(method.input_type)

        async def handle(_: object, context: Context) -> bytes:
            metadata = context.invocation_metadata() or ()
            said = _said(metadata)
            line = Line(name, _request_id(said.get("x-request-id", ())))
            ends = line.started + self._timeout_seconds(context)
            context.set_trailing_metadata((("x-request-id", line.request_id),))
            try:
                if self._is_full(method.name):
                    raise Refusal(Code.UNAVAILABLE)  # before it has cost anything
                _check(metadata)
                line.principal = await self._authenticator.authenticate(said.get("authorization", ()))
                if scope is None or scope not in line.principal.scopes:
                    raise Refusal(Code.FORBIDDEN)
                request = _parse(request_class, await _message(context, ends))
                key = validate(request, said.get("idempotency-key", ()))
                call = Call(line.request_id, line.principal, name, scope, key, max(0.0, ends - time.monotonic()))
                answer = await behaviour(request, call)
                if answer.key_seen:
                    self._authenticator.renew(line.principal, line.started)
                if answer.replayed:
                    line.code = "REPLAYED"
                    await context.send_initial_metadata((("idempotency-replayed", "true"),))
                return answer.message
            except Refusal as refusal:
                line.code = refusal.code
                await _abort(context, refusal, line.request_id)
            except DatabaseAway:  # of the look-up: nothing has been tried yet
                line.code = Code.UNAVAILABLE
                await _abort(context, Refusal(Code.UNAVAILABLE), line.request_id)
            except asyncio.CancelledError:
                line.code = "CANCELLED"
                raise
            except Exception:
                log.exception("call %s failed", line.request_id)
                line.code = Code.INTERNAL
                await _abort(context, Refusal(Code.INTERNAL), line.request_id)
            finally:
                self._log.write(line)

        return handle

    def _timeout_seconds(self, context: Context) -> float:
        remaining = context.time_remaining()
        return max(
            0.0, min(self._seconds_max, remaining if remaining is not None else self._seconds_max) - ANSWER_SECONDS
        )


def _said(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, list[str | bytes]]:
    """What a call's metadata says, by name; most names once."""
    said: dict[str, list[str | bytes]] = {}
    for name, value in metadata:
        said.setdefault(name, []).append(value)
    return said


def _check(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Raises HEADERS_TOO_LARGE, or INVALID_INPUT for a value that gRPC does not allow: it must be printable ASCII."""
    count = size = 0
    for name, value in metadata:
        count, size = count + 1, size + len(name) + len(value)
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise Refusal(Code.INVALID_INPUT)
    if size > HEADERS_BYTES_MAX or count > HEADERS_MAX:
        raise Refusal(Code.HEADERS_TOO_LARGE)


async def _message(context: Context, ends: float) -> bytes:
    """The call's one message. Raises REQUEST_TIMEOUT, PAYLOAD_TOO_LARGE, or INVALID_INPUT where there is none."""
    try:
        async with asyncio.timeout(ends - time.monotonic()):
            raw = await context.read()
    except TimeoutError:
        raise Refusal(Code.REQUEST_TIMEOUT) from None
    if not isinstance(raw, bytes):  # the end of the call
        raise Refusal(Code.INVALID_INPUT)
    if len(raw) + FRAME_BYTES > REQUEST_BODY_BYTES_MAX:
        raise Refusal(Code.PAYLOAD_TOO_LARGE)
    return raw


def _request_id(values: Sequence[str | bytes]) -> str:
    """The caller's, if it is one ULID; else a new one. (A UUIDv7 is one too, and comes without a system call.)"""
    if len(values) == 1 and isinstance(values[0], str) and ULID_FORM.fullmatch(values[0]):
        return values[0]
    return str(ULID(uuid7().bytes))


def _parse(request_class: type[Message], raw: bytes) -> Message:
    try:
        return request_class.FromString(raw)
    except DecodeError:
        raise Refusal(Code.INVALID_INPUT) from None


# ---------------------------------------------------------------- refusals


def error_response(refusal: Refusal, request_id: str) -> ErrorResponse:
    """The documented envelope of a refusal."""
    error = Error(code=refusal.code, message=refusal.message, request_id=request_id)
    if refusal.details:
        error.details.update(refusal.details)
    response = ErrorResponse(success=False, error=error)
    if refusal.shortage:
        shortage = refusal.shortage
        response.data.CopyFrom(
            InventoryShortage(available_count=shortage.available_count, unavailable=shortage.unavailable)
        )
    return response


async def _abort(context: Context, refusal: Refusal, request_id: str) -> NoReturn:
    meaning = refusal.meaning
    grpc_status = getattr(grpc.StatusCode, meaning.grpc_status)
    status = status_pb2.Status(code=grpc_status.value[0], message=refusal.message)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=refusal.code, domain=DOMAIN)]
    trailing: list[tuple[str, str | bytes]] = [("x-request-id", request_id), ("http-status", str(meaning.http_status))]
    if meaning.retry_seconds:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=meaning.retry_seconds)))
        trailing.append(("retry-after", str(meaning.retry_seconds)))
    details.append(error_response(refusal, request_id))  # last: the edge takes the last one for its body
    for detail in details:
        status.details.add().Pack(detail, deterministic=True)
    trailing.append(("grpc-status-details-bin", status.SerializeToString(deterministic=True)))
    await context.abort(grpc_status, refusal.message, tuple(trailing))


# ---------------------------------------------------------------- the log of calls


class Line:
    """One call, as the log tells of it."""

    __slots__ = ("code", "method", "principal", "request_id", "started")

    def __init__(self, method: str, request_id: str) -> None:
        self.method = method
        self.request_id = request_id
        self.started = time.monotonic()
        self.principal: Principal | None = None
        self.code: str = "OK"

    def __str__(self) -> str:
        """JSON, by hand: it is a tenth of the cost, and nothing in it is a caller's text."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        ms = (time.monotonic() - self.started) * 1000
        key = self.principal
        who = f', "organization": "{key.organization_id}", "key_id": "{key.api_key_id}"' if key else ""
        return (
            f'{{"time": "{now}", "request_id": "{self.request_id}", "method": "{self.method}", '
            f'"code": "{self.code}", "ms": {ms:.3f}{who}}}'
        )


class CallLog:
    """One JSON line a call on standard error; the lines of one turn of the event loop in one write."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def write(self, line: Line) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(str(line))

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        with suppress(OSError, ValueError):  # a log that cannot be written must not stop sales
            sys.stderr.write("\n".join([*lines, ""]))
            sys.stderr.flush()
