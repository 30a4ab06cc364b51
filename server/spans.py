"""The spans of traced calls and of their transactions, in OpenTelemetry's form."""

import time
from collections.abc import Iterable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from server.errors import ERRORS, Code
from server.traceparent import TraceParent

EXPORT_INTERVAL_MS = 1000


class Spans:
    """Makes spans, and sends them to a receiver at that base URL (OTLP over HTTP)."""

    def __init__(self, endpoint: str, worker: int) -> None:
        resource = Resource.create({"service.name": "ordernumbers", "service.instance.id": f"worker {worker}"})
        # Only sampled calls get here. Those who made them have decided it.
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(f"{endpoint}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_INTERVAL_MS))
        self._tracer = self._provider.get_tracer("ordernumbers")

    def call(self, method: str, request_id: str, parent: TraceParent) -> "CallSpan":
        """Begin the span of a call. `method` is the full name of its RPC."""
        return CallSpan(self._tracer, method, request_id, parent)

    def transaction(self, calls: Sequence["CallSpan"], writes: int) -> "TransactionSpans":
        """Begin the spans of a transaction with so many writes, of these and perhaps of other calls."""
        return TransactionSpans(self._tracer, calls, writes)

    def close(self) -> None:
        """Send what is left. It may take half a minute if the receiver does not answer."""
        self._provider.shutdown()


class CallSpan:
    """The span of a call."""

    def __init__(self, tracer: Tracer, method: str, request_id: str, parent: TraceParent) -> None:
        self.request_id = request_id
        service, _, name = method.rpartition(".")
        # https://opentelemetry.io/docs/specs/semconv/rpc/
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        attributes["ordernumbers.request_id"] = request_id
        caller = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=_SAMPLED)
        self._span = tracer.start_span(
            f"{service}/{name}", _below(NonRecordingSpan(caller)), SpanKind.SERVER, attributes
        )
        self.context = _below(self._span)
        self.link = Link(self._span.get_span_context())
        self.waits_since = time.time_ns()
        """In nanoseconds since 1970, as all times here."""

    def end(self, code: str) -> None:
        """End the span with the code that the call's line in the log has."""
        self._span.set_attribute("ordernumbers.code", code)
        is_ours = code in ERRORS and ERRORS[Code(code)].http_status >= 500
        _end(self._span, time.time_ns(), code if is_ours else None)


class TransactionSpans:
    """The spans of a transaction: one of its own, and one in the trace of each of these calls, linked to it.

    They are made when it has ended. Until then only times are noted.
    """

    def __init__(self, tracer: Tracer, calls: Sequence[CallSpan], writes: int) -> None:
        self._tracer = tracer
        self._calls = calls
        self._writes = writes
        self._started = time.time_ns()
        self._round_trips: list[tuple[int, int, str]] = []

    def round_trip(self, started: int, statements: Iterable[bytes]) -> None:
        """Note a round trip to the database that has just ended."""
        self._round_trips.append((started, time.time_ns(), b" ".join(statements).decode()))

    def end(self, error: BaseException | None) -> None:
        """Make the spans. `error` is why the transaction failed."""
        ended, failure = time.time_ns(), type(error).__name__ if error else None
        # Without a parent, because it may belong to several calls.
        writes = {"ordernumbers.writes": self._writes}
        batch = self._span("batch", Context(), writes, [call.link for call in self._calls])
        for call in self._calls:
            self._span("wait", call.context, started=call.waits_since).end(self._started)
            call.waits_since = ended
            span = self._span("transaction", call.context, _DATABASE, [Link(batch.get_span_context())])
            for started, done, statements in self._round_trips:
                names = {"ordernumbers.statements": statements}
                self._span("round trip", _below(span), names, started=started).end(done)
            _end(span, ended, failure)
        _end(batch, ended, failure)

    def _span(
        self,
        name: str,
        context: Context,
        attributes: Mapping[str, str | int] | None = None,
        links: Sequence[Link] = (),
        started: int | None = None,
    ) -> Span:
        at = started or self._started
        return self._tracer.start_span(name, context, attributes=attributes, links=links, start_time=at)


_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_DATABASE = {"db.system.name": "postgresql"}


def _below(span: Span) -> Context:
    """The context of the spans below this one. Never the current context, which other calls may have."""
    return set_span_in_context(span, Context())


def _end(span: Span, at: int, failure: str | None) -> None:
    if failure:
        span.set_status(StatusCode.ERROR, failure)
    span.end(at)
