"""Refusals as gRPC statuses: google.rpc.Status with our ErrorResponse, and what the edge reads from the trailers."""

from typing import NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from ordernumbers.v1.errors_pb2 import Error, ErrorResponse, InventoryShortage
from server.errors import Refusal

DOMAIN = "ordernumbers"

Context = grpc.aio.ServicerContext[bytes, bytes]


def error_response(refusal: Refusal, request_id: str) -> ErrorResponse:
    """The documented error body of a refusal."""
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


async def abort(context: Context, refusal: Refusal, request_id: str) -> NoReturn:
    """End the call with the refusal. Raises always, as grpc.aio's own `abort` does."""
    spec = refusal.spec
    grpc_status = getattr(grpc.StatusCode, spec.grpc_status)
    status = status_pb2.Status(code=grpc_status.value[0], message=refusal.message)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=refusal.code, domain=DOMAIN)]
    trailing: list[tuple[str, str | bytes]] = [("x-request-id", request_id), ("http-status", str(refusal.http_status))]
    if spec.retry_seconds:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=spec.retry_seconds)))
        trailing.append(("retry-after", str(spec.retry_seconds)))
    # No BadRequest beside it: the violations twice would not fit into the 8 KB of metadata that clients accept.
    details.append(error_response(refusal, request_id))  # last: the edge makes its body of the last one
    for detail in details:
        status.details.add().Pack(detail, deterministic=True)  # so that equal refusals have equal bytes
    trailing.append(("grpc-status-details-bin", status.SerializeToString(deterministic=True)))
    await context.abort(grpc_status, refusal.message, tuple(trailing))
