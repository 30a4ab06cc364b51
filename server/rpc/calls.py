"""What every call goes through: request id, key, scope, parsing, rules, the method, one line in the log.

This is one function around the method, and no chain of grpc.aio interceptors. Each interceptor would cost a task and a
context per call.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import grpc
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from ulid import ULID
from uuid_utils import uuid7

from server.admission import Response
from server.api.call import Call
from server.config import HEADERS_BYTES_MAX, HEADERS_MAX, REQUEST_BODY_BYTES_MAX, Settings
from server.errors import Code, Refusal
from server.rpc import idempotency_key
from server.rpc.auth import Authenticator, required_scope
from server.rpc.call_log import CallLog, CallRecord
from server.rpc.status import Context, abort
from server.rpc.validation import violations
from server.store.connection import DatabaseAway

log = logging.getLogger(__name__)

ULID_FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
RESPONSE_SECONDS = 0.1
"""Subtracted from a call's time, so that our TIMEOUT reaches its caller before the deadline."""
FRAME_BYTES = 5
"""gRPC's frame around a message. It counts towards the longest request, as it does at the edge."""

Method = Callable[[Any, Call], Awaitable[Response]]
Values = Mapping[str, Sequence[str | bytes]]
Metadata = Iterable[tuple[str, str | bytes]]


class Calls:
    """Makes gRPC handlers out of the methods of our services."""

    def __init__(self, settings: Settings, authenticator: Authenticator, is_full: Callable[[str], bool]) -> None:
        self._seconds_max = settings.deadline_max_ms / 1000
        self._is_full = is_full
        self._authenticator = authenticator
        self._log = CallLog()

    def handlers(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Handlers for every method of a service. Raises AttributeError that names a method the servicer lacks."""
        handlers: dict[str, Any] = {
            # Not unary_unary: gRPC would wait for ever for a message that never arrives, before it calls us.
            method.name: grpc.stream_unary_rpc_method_handler(self._handler(method, getattr(servicer, method.name)))
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _handler(self, descriptor: MethodDescriptor, method: Method) -> Any:
        respond = self._responder(descriptor, method)

        async def handle(_: object, context: Context) -> bytes:
            metadata = context.invocation_metadata() or ()
            by_name = _by_name(metadata)
            record = CallRecord(descriptor.full_name, _request_id(by_name.get("x-request-id", ())))
            context.set_trailing_metadata((("x-request-id", record.request_id),))
            try:
                return await respond(context, metadata, by_name, record)
            except asyncio.CancelledError:
                record.code = "CANCELLED"
                raise
            except Exception as error:
                refusal = _refusal(error, record.request_id)
                record.code = refusal.code
                await abort(context, refusal, record.request_id)
            finally:
                self._log.write(record)

        return handle

    def _responder(self, descriptor: MethodDescriptor, method: Method) -> Callable[..., Awaitable[bytes]]:
        name, scope, in_path = descriptor.full_name, required_scope(descriptor), path_fields(descriptor)
        request_class = GetMessageClass(descriptor.input_type)
        violations(request_class())  # raises now if it has a field that cannot be checked

        async def respond(context: Context, metadata: Metadata, by_name: Values, record: CallRecord) -> bytes:
            ends = record.started + self._timeout_seconds(context)
            if self._is_full(descriptor.name):
                raise Refusal(Code.UNAVAILABLE)  # before the call has cost anything
            _check_metadata(metadata)
            record.principal = await self._authenticator.authenticate(by_name.get("authorization", ()))
            if scope is None or scope not in record.principal.scopes:
                raise Refusal(Code.FORBIDDEN)
            request = _parse(request_class, await _read_message(context, ends))
            key = _validate(request, by_name.get(idempotency_key.HEADER, ()), in_path)
            timeout_seconds = max(0.0, ends - time.monotonic())
            call = Call(record.request_id, record.principal, name, scope, key, timeout_seconds)
            response = await method(request, call)
            if response.key_is_valid:
                self._authenticator.renew(record.principal, record.started)
            if response.is_replayed:
                record.code = "REPLAYED"
                await context.send_initial_metadata((("idempotency-replayed", "true"),))
            return response.message

        return respond

    def _timeout_seconds(self, context: Context) -> float:
        remaining = context.time_remaining()
        seconds = self._seconds_max if remaining is None else min(self._seconds_max, remaining)
        return max(0.0, seconds - RESPONSE_SECONDS)


def path_fields(method: MethodDescriptor) -> Collection[str]:
    """The fields of the request that REST has in the path, from the method's `google.api.http` option."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return frozenset(re.findall(r"{(\w+)}", getattr(rule, verb)) if verb else ())


def _refusal(error: Exception, request_id: str) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, DatabaseAway):  # from the look-up of the key: nothing has been tried yet
        return Refusal(Code.UNAVAILABLE)
    log.error("call %s failed", request_id, exc_info=error)
    return Refusal(Code.INTERNAL)


def _by_name(metadata: Metadata) -> dict[str, list[str | bytes]]:
    values: dict[str, list[str | bytes]] = {}
    for name, value in metadata:
        values.setdefault(name, []).append(value)
    return values


def _check_metadata(metadata: Metadata) -> None:
    """Raises HEADERS_TOO_LARGE, or INVALID_INPUT for a value that is not printable ASCII, as gRPC requires."""
    count = size = 0
    for name, value in metadata:
        count, size = count + 1, size + len(name) + len(value)
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise Refusal(Code.INVALID_INPUT)
    if size > HEADERS_BYTES_MAX or count > HEADERS_MAX:
        raise Refusal(Code.HEADERS_TOO_LARGE)


async def _read_message(context: Context, ends: float) -> bytes:
    """The call's one message. Raises REQUEST_TIMEOUT, PAYLOAD_TOO_LARGE, or INVALID_INPUT when there is none."""
    try:
        async with asyncio.timeout(ends - time.monotonic()):
            message = await context.read()
    except TimeoutError:
        raise Refusal(Code.REQUEST_TIMEOUT) from None
    if not isinstance(message, bytes):  # grpc.aio.EOF: the call ended without a message
        raise Refusal(Code.INVALID_INPUT)
    if len(message) + FRAME_BYTES > REQUEST_BODY_BYTES_MAX:
        raise Refusal(Code.PAYLOAD_TOO_LARGE)
    return message


def _request_id(values: Sequence[str | bytes]) -> str:
    """The caller's request id if it is one ULID, else a new one."""
    if len(values) == 1 and isinstance(values[0], str) and ULID_FORM.fullmatch(values[0]):
        return values[0]
    # The bytes of a UUIDv7 are a valid ULID, and uuid_utils makes them without a system call.
    return str(ULID(uuid7().bytes))


def _parse(request_class: type[Message], message: bytes) -> Message:
    # Not by grpc: it would send its caller UNKNOWN with the text of the exception.
    try:
        return request_class.FromString(message)
    except DecodeError:
        raise Refusal(Code.INVALID_INPUT) from None


def _validate(request: Message, idempotency_keys: Sequence[str | bytes], in_path: Collection[str]) -> str | None:
    """The idempotency key, if there is one. Raises VALIDATION_FAILED with all violations at once."""
    key, key_violations = idempotency_key.read(idempotency_keys)
    if details := violations(request) | key_violations:
        # A malformed path is a malformed request, whatever the rest of it is.
        http_status = 400 if any(name in in_path for name in details) else None
        raise Refusal(Code.VALIDATION_FAILED, details=details, http_status=http_status)
    return key
