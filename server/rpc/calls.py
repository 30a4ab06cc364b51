"""What every call goes through: request id, key, scope, parsing, rules, the method, one line in the log."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from ulid import ULID
from uuid_utils import uuid7

from server.api.orders import Call
from server.batching import Answer
from server.config import HEADERS_BYTES_MAX, HEADERS_MAX, REQUEST_BODY_BYTES_MAX, Settings
from server.errors import Code, Refusal
from server.rpc.auth import Authenticator, required_scope
from server.rpc.call_log import CallLog, CallRecord
from server.rpc.status import _abort
from server.rpc.validation import validate
from server.store.connection import DatabaseAway

log = logging.getLogger(__name__)

ULID_FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)

ANSWER_SECONDS = 0.1  # kept of a call's time for the way back, so that its caller hears TIMEOUT from us

FRAME_BYTES = 5  # gRPC's, around a message: it counts, as it does at the edge

Context = grpc.aio.ServicerContext[bytes, bytes]

Method = Callable[[Any, Call], Awaitable[Answer]]


class Calls:
    """What every call of our own services goes through."""

    def __init__(self, settings: Settings, authenticator: Authenticator, is_full: Callable[[str], bool]) -> None:
        self._seconds_max = settings.deadline_max_ms / 1000
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
            record = CallRecord(name, _request_id(said.get("x-request-id", ())))
            ends = record.started + self._timeout_seconds(context)
            context.set_trailing_metadata((("x-request-id", record.request_id),))
            try:
                if self._is_full(method.name):
                    raise Refusal(Code.UNAVAILABLE)  # before it has cost anything
                _check(metadata)
                record.principal = await self._authenticator.authenticate(said.get("authorization", ()))
                if scope is None or scope not in record.principal.scopes:
                    raise Refusal(Code.FORBIDDEN)
                request = _parse(request_class, await _message(context, ends))
                key = validate(request, said.get("idempotency-key", ()))
                call = Call(record.request_id, record.principal, name, scope, key, max(0.0, ends - time.monotonic()))
                answer = await behaviour(request, call)
                if answer.key_seen:
                    self._authenticator.renew(record.principal, record.started)
                if answer.replayed:
                    record.code = "REPLAYED"
                    await context.send_initial_metadata((("idempotency-replayed", "true"),))
                return answer.message
            except Refusal as refusal:
                record.code = refusal.code
                await _abort(context, refusal, record.request_id)
            except DatabaseAway:  # of the look-up: nothing has been tried yet
                record.code = Code.UNAVAILABLE
                await _abort(context, Refusal(Code.UNAVAILABLE), record.request_id)
            except asyncio.CancelledError:
                record.code = "CANCELLED"
                raise
            except Exception:
                log.exception("call %s failed", record.request_id)
                record.code = Code.INTERNAL
                await _abort(context, Refusal(Code.INTERNAL), record.request_id)
            finally:
                self._log.write(record)

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
