"""Which calls are traced: those whose `traceparent` says that they are sampled, if there is a receiver of traces.

OpenTelemetry is only loaded then (spans.py). Any other call, and a transaction without a traced call, looks into an
empty dictionary and no further: one span costs 16 µs.
"""

import asyncio
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from server.config import Settings, variable_of
from server.errors import OperatorError
from server.traceparent import TraceParent

if TYPE_CHECKING:
    from server.spans import CallSpan, Spans, TransactionSpans

CLOSE_POLL_SECONDS = 0.02
CLOSE_SECONDS_MAX = 3.0
"""How long a stopping worker waits until the receiver has its last spans."""

_spans: "Spans | None" = None
_traced: "dict[str, CallSpan]" = {}
"""The traced calls in progress, by request id."""


def start(settings: Settings, worker: int) -> None:
    """Send the spans of this process to the receiver of the settings, if there is one.

    Raises OperatorError if OpenTelemetry is not installed.
    """
    global _spans  # noqa: PLW0603
    if settings.otlp_endpoint:
        try:
            from server.spans import Spans  # noqa: PLC0415
        except ImportError:
            raise OperatorError(f"{variable_of('otlp_endpoint')} needs: pip install 'ordernumbers[tracing]'") from None
        _spans = Spans(settings.otlp_endpoint, worker)


async def close() -> None:
    """Send the last spans. Gives up when the receiver does not take them in time."""
    global _spans
    spans, _spans = _spans, None
    if spans:
        # Not in the event loop's own threads. The process would wait for those at its end.
        closing = threading.Thread(target=spans.close, daemon=True)
        closing.start()
        ends = time.monotonic() + CLOSE_SECONDS_MAX
        while closing.is_alive() and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(CLOSE_POLL_SECONDS)


def begin_call(method: str, request_id: str, parent: TraceParent) -> "CallSpan | None":
    """Trace a call, if its caller has sampled it and there is a receiver."""
    if not (_spans and parent.is_sampled):
        return None
    span = _traced[request_id] = _spans.call(method, request_id, parent)
    return span


def end_call(span: "CallSpan", code: str) -> None:
    """End the trace of a call with the code that its line in the log has."""
    span.end(code)
    if _traced.get(span.request_id) is span:  # two calls may have the same request id
        del _traced[span.request_id]


class _Write(Protocol):
    @property
    def request_id(self) -> str: ...


def begin_transaction(writes: Iterable[_Write]) -> "TransactionSpans | None":
    """Trace a transaction, if one of its writes belongs to a traced call."""
    if not _traced or not _spans:
        return None
    found = [_traced.get(write.request_id) for write in writes]
    calls = [span for span in found if span]
    return _spans.transaction(calls, len(found)) if calls else None
