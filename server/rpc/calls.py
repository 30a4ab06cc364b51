"""What every call goes through: request id, key, scope, parsing, rules, the method, one line in the log.

These are stages around the method, and no chain of grpc.aio interceptors. Each interceptor would cost a task and a
context per call.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from ulid import ULID
from uuid_utils import uuid7

from server import metrics, tracing
from server.admission import Response
from server.api.call import Call
from server.config import HEADERS_BYTES_MAX, HEADERS_MAX, REQUEST_BODY_BYTES_MAX, Settings
from server.deadlines import Deadlines
from server.errors import Code, Refusal
from server.rpc import idempotency_key
from server.rpc.auth import Authenticator, required_scope
from server.rpc.call_log import CallLog, CallRecord
from server.rpc.status import Context, abort
from server.rpc.validation import violations
from server.store.connection import DatabaseAway
from server.traceparent import read_traceparent

log = logging.getLogger(__name__)

ULID_FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
RESPONSE_SECONDS = 0.1
"""Subtracted from a call's time, so that our TIMEOUT reaches its caller before the deadline."""
REPLAYED = "REPLAYED"
FRAME_BYTES = 5
"""gRPC's frame around a message. It counts towards the longest request, as it does at the edge."""

Values = Mapping[str, Sequence[str | bytes]]
Metadata = Iterable[tuple[str, str | bytes]]


class Method(NamedTuple):
    """What is known about an RPC."""

    name: str
    full_name: str
    scope: str | None
    in_path: Collection[str]
    """The fields of the request that REST has in the path."""
    request_class: type[Message]
    run: Callable[[Any, Call], Awaitable[Response]]
    begin: Callable[..., bool] | None
    """Begins a call without a task. Returns False if the call needs one."""


class ArrivedCall:
    """A call with its message, on its way to its method."""

    __slots__ = (
        "context",
        "deadline",
        "is_late",
        "key",
        "message",
        "metadata",
        "method",
        "reading_task",
        "record",
        "request",
        "response",
        "span",
        "values",
    )

    def __init__(self, method: Method, context: Context, seconds_max: float) -> None:
        self.method = method
        self.context = context
        self.metadata = context.invocation_metadata() or ()
        self.values = _by_name(self.metadata)
        self.record = CallRecord(method.full_name, _request_id(self.values.get("x-request-id", ())))
        self.span = self._begin_span()
        remaining = context.time_remaining()
        seconds = seconds_max if remaining is None else min(seconds_max, remaining)
        self.deadline = self.record.started + max(0.0, seconds - RESPONSE_SECONDS)
        self.is_late = seconds <= RESPONSE_SECONDS
        self.message = b""
        self.reading_task = asyncio.current_task()
        self.request: Any = None
        self.key: str | None = None
        self.response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        """Note that the call has ended, with the code of its record."""
        if self.span:
            tracing.end_call(self.span, self.record.code)

    def _begin_span(self) -> Any:
        """The span of the call, if it is traced. The record gets the trace's id, whether it is traced or not."""
        values = self.values.get("traceparent")
        parent = read_traceparent(values) if values else None
        if parent is None:
            return None
        self.record.trace_id = parent.trace_id
        return tracing.begin_call(self.record.method, self.record.request_id, parent)

    def expire(self) -> None:
        """End the wait for the message."""
        self.is_late = True
        if self.reading_task:
            self.reading_task.cancel()


class Calls:
    """Makes gRPC handlers out of the methods of our services.

    A call first shows its key, and only then is its message read. The calls whose messages arrive in one turn of the
    event loop go through the stages together. Each stage runs over all of them before the next one begins. gRPC's code
    pushes ours out of the processor's cache. So a stage is faster when it runs for many calls in a row.
    """

    def __init__(self, settings: Settings, authenticator: Authenticator, is_full: Callable[[str], bool]) -> None:
        self._seconds_max = settings.deadline_max_ms / 1000
        self._is_full = is_full
        self._authenticator = authenticator
        self._log = CallLog()
        self._unread = Deadlines()
        self._inbox: list[ArrivedCall] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def handlers(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Handlers for every method of a service. Raises AttributeError that names a method the servicer lacks."""
        begin = getattr(servicer, "begin", {})
        handlers: dict[str, Any] = {
            # Not unary_unary: gRPC would wait for ever for a message that never arrives, before it calls us.
            method.name: grpc.stream_unary_rpc_method_handler(
                self._handler(_method(method, getattr(servicer, method.name), begin.get(method.name)))
            )
            for method in service.methods
        }
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _handler(self, method: Method) -> Any:
        async def handle(_: object, context: Context) -> bytes:
            call = ArrivedCall(method, context, self._seconds_max)
            context.set_trailing_metadata((("x-request-id", call.record.request_id),))
            try:
                if self._is_full(method.name) or call.is_late:
                    raise Refusal(Code.UNAVAILABLE)  # before the call has cost anything
                _check_metadata(call)
                await self._authorize(call)
                call.message = await self._read_message(call)
                self._enqueue(call)
                message = await call.response
                if call.record.code == REPLAYED:
                    await context.send_initial_metadata((("idempotency-replayed", "true"),))
                return message
            except asyncio.CancelledError:
                call.record.code = "CANCELLED"
                raise
            except Exception as error:
                refusal = _refusal(error, call.record.request_id)
                call.record.code = refusal.code
                await abort(context, refusal, call.record.request_id)
            finally:
                call.end()
                self._log.write(call.record)

        return handle

    async def _authorize(self, call: ArrivedCall) -> None:
        """Find the key of a call. Raises UNAUTHORIZED, FORBIDDEN, RATE_LIMITED or DatabaseAway."""
        authorization = call.values.get("authorization", ())
        found = self._authenticator.find_cached(authorization)
        call.record.principal = principal = found or await self._authenticator.authenticate(authorization)
        if call.method.scope is None or call.method.scope not in principal.scopes:
            raise Refusal(Code.FORBIDDEN)

    async def _read_message(self, call: ArrivedCall) -> bytes:
        """The call's one message. Raises REQUEST_TIMEOUT, PAYLOAD_TOO_LARGE, or INVALID_INPUT when there is none."""
        # As asyncio.timeout does it, but without a timer of its own.
        self._unread.add(call)
        try:
            message = await call.context.read()
        except asyncio.CancelledError:
            if not (call.is_late and call.reading_task and call.reading_task.uncancel() == 0):
                raise
            raise Refusal(Code.REQUEST_TIMEOUT) from None
        finally:
            self._unread.discard(call)
        if not isinstance(message, bytes):  # grpc.aio.EOF: the call ended without a message
            raise Refusal(Code.INVALID_INPUT)
        if len(message) + FRAME_BYTES > REQUEST_BODY_BYTES_MAX:
            raise Refusal(Code.PAYLOAD_TOO_LARGE)
        return message

    # ---------------------------------------------------------------- the stages

    def _enqueue(self, call: ArrivedCall) -> None:
        if not self._inbox:
            asyncio.get_running_loop().call_soon(self._check_and_begin)
        self._inbox.append(call)

    def _check_and_begin(self) -> None:
        calls, self._inbox = self._inbox, []
        for stage in (_parse, _check_rules, self._begin):
            calls = _each(calls, stage)

    def _begin(self, call: ArrivedCall) -> None:
        method, principal = call.method, call.record.principal
        assert principal  # noqa: S101
        timeout_seconds = max(0.0, call.deadline - time.monotonic())
        about = Call(call.record.request_id, principal, method.full_name, method.scope or "", call.key, timeout_seconds)

        def respond(response: Response | Refusal) -> None:
            self._respond(call, response)

        if not (method.begin and method.begin(call.request, about, call.response, respond)):
            self._start_task(self._run(call, about))

    def _respond(self, call: ArrivedCall, response: Response | Refusal) -> None:
        """End a call whose caller still waits."""
        if isinstance(response, Refusal):
            call.response.set_exception(response)
            return
        if response.key_is_valid and call.record.principal:
            self._authenticator.renew(call.record.principal, call.record.started)
        if response.is_replayed:
            call.record.code = REPLAYED
        call.response.set_result(response.message)

    # ---------------------------------------------------------------- what needs a task

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself keeps no reference
        task.add_done_callback(self._tasks.discard)

    async def _run(self, call: ArrivedCall, about: Call) -> None:
        """Run a method. When its caller leaves, it is cancelled."""
        running = asyncio.current_task()
        assert running  # noqa: S101
        call.response.add_done_callback(lambda response: running.cancel() if response.cancelled() else None)
        try:
            response = await call.method.run(call.request, about)
        except asyncio.CancelledError:
            _fail(call, Refusal(Code.TIMEOUT))  # nobody waits any more, unless something else has ended the method
            raise
        except Exception as error:
            _fail(call, error)
        else:
            if not call.response.done():
                self._respond(call, response)


def _each(calls: list[ArrivedCall], stage: Callable[[ArrivedCall], None]) -> list[ArrivedCall]:
    """Run a stage over calls. Return those that it does not refuse and whose callers still wait."""
    going_on = []
    for call in calls:
        try:
            if not call.response.done():
                stage(call)
                going_on.append(call)
        except Exception as error:
            _fail(call, error)
    return going_on


def _fail(call: ArrivedCall, error: Exception) -> None:
    if not call.response.done():
        call.response.set_exception(error)


def _method(descriptor: MethodDescriptor, run: Callable[..., Any], begin: Callable[..., bool] | None) -> Method:
    request_class = GetMessageClass(descriptor.input_type)
    violations(request_class())  # raises now if it has a field that cannot be checked
    scope, in_path = required_scope(descriptor), path_fields(descriptor)
    metrics.show_failures(descriptor.name)
    return Method(descriptor.name, descriptor.full_name, scope, in_path, request_class, run, begin)


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


def _check_metadata(call: ArrivedCall) -> None:
    """Raises HEADERS_TOO_LARGE, or INVALID_INPUT for a value that is not printable ASCII, as gRPC requires."""
    count = size = 0
    for name, value in call.metadata:
        count, size = count + 1, size + len(name) + len(value)
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise Refusal(Code.INVALID_INPUT)
    if size > HEADERS_BYTES_MAX or count > HEADERS_MAX:
        raise Refusal(Code.HEADERS_TOO_LARGE)


def _request_id(values: Sequence[str | bytes]) -> str:
    """The caller's request id if it is one ULID, else a new one."""
    if len(values) == 1 and isinstance(values[0], str) and ULID_FORM.fullmatch(values[0]):
        return values[0]
    # The bytes of a UUIDv7 are a valid ULID, and uuid_utils makes them without a system call.
    return str(ULID(uuid7().bytes))


def _parse(call: ArrivedCall) -> None:
    # Not by grpc: it would send its caller UNKNOWN with the text of the exception.
    try:
        call.request = call.method.request_class.FromString(call.message)
    except DecodeError:
        raise Refusal(Code.INVALID_INPUT) from None


def _check_rules(call: ArrivedCall) -> None:
    """Read the idempotency key. Raises VALIDATION_FAILED with all violations at once."""
    call.key, key_violations = idempotency_key.read(call.values.get(idempotency_key.HEADER, ()))
    if details := violations(call.request) | key_violations:
        # A malformed path is a malformed request, whatever the rest of it is.
        http_status = 400 if any(name in call.method.in_path for name in details) else None
        raise Refusal(Code.VALIDATION_FAILED, details=details, http_status=http_status)
