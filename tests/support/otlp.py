"""A receiver of traces: OTLP over HTTP, on a free port of this machine."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span as it was received. Ids are hexadecimal digits, times are in nanoseconds since 1970."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    started: int
    ended: int
    attributes: dict[str, Any]
    linked: list[str]
    """The ids of the spans that it is linked to."""
    is_error: bool
    state: str
    """The caller's `tracestate`."""


@dataclass
class Receiver:
    """What has been received. `endpoint` is its base URL."""

    endpoint: str
    spans: list[Span] = field(default_factory=list)

    def of_trace(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id == trace_id]


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """A running receiver."""
    app = FastAPI()

    @app.post("/v1/traces")
    async def receive(request: Request) -> Response:
        receiver.spans.extend(_spans(ExportTraceServiceRequest.FromString(await request.body())))
        return Response(media_type="application/x-protobuf")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        receiver = Receiver(f"http://127.0.0.1:{listening.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield receiver
        finally:
            server.should_exit = True
            thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        service = _attributes(resource.resource)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    service=service,
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    started=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    attributes=_attributes(span),
                    linked=[link.span_id.hex() for link in span.links],
                    is_error=span.status.code == 2,
                    state=span.trace_state,
                )


def _attributes(message: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in message.attributes}
