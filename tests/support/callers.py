"""The documented call over REST and gRPC. Both return a `Response`, so that one test can compare them."""

import json
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import httpx
from google.protobuf.json_format import MessageToDict
from grpc_status import rpc_status

from ordernumbers.v1.errors_pb2 import ErrorResponse
from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest, OrderNumbersResponse
from server.errors import ERRORS, Code

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
METHOD = "/ordernumbers.v1.PhoneNumberService/OrderNumbers"
ROUTE = "/v1/phone-numbers/orders"
TIMEOUT_SECONDS = 20


class Response(NamedTuple):
    """`status` is an HTTP status. For gRPC it is the one that the error table has for the code."""

    status: int
    body: dict[str, Any]
    request_id: str
    headers: dict[str, str]
    raw: bytes


def failure(code: str, message: str, request_id: str, *, details: Any = None, data: Any = None) -> dict[str, Any]:
    """The documented envelope of an error."""
    error = {"code": code, "message": message, "request_id": request_id}
    if details is not None:
        error["details"] = details
    return {"success": False, "error": error} | ({} if data is None else {"data": data})


def authorization(key: str | None) -> str | None:
    """The value of the header: "Bearer …" for a key, any text with a space unchanged, None for no header."""
    return key if key is None or " " in key else f"Bearer {key}"


HeaderValues = str | list[bytes] | None
"""A header once, several times, or not at all."""


def _as_list(values: HeaderValues) -> list[str] | list[bytes]:
    return [] if values is None else [values] if isinstance(values, str) else values


@dataclass
class Rest:
    """Calls with a POST through Envoy."""

    client: httpx.Client

    def __call__(self, key: str | None, *, idempotency_key: HeaderValues = None, **request: Any) -> Response:
        headers = [("idempotency-key", value) for value in _as_list(idempotency_key)]
        return self.post(key, json.dumps(request).encode(), headers)

    def post(self, key: str | None, body: bytes, headers: Any = (), **more: str) -> Response:
        sent: list[tuple[str, Any]] = [("content-type", "application/json"), *headers, *more.items()]
        if (value := authorization(key)) is not None:
            sent.append(("authorization", value))
        http = self.client.post(ROUTE, content=body, headers=sent)
        return Response(http.status_code, http.json(), http.headers["x-request-id"], dict(http.headers), http.content)


@dataclass
class Grpc:
    """Calls over gRPC, to a worker or through Envoy."""

    channel: grpc.Channel
    timeout_seconds: float = TIMEOUT_SECONDS

    def __call__(self, key: str | None, *, idempotency_key: HeaderValues = None, **request: Any) -> Response:
        metadata: list[tuple[str, Any]] = [("idempotency-key", value) for value in _as_list(idempotency_key)]
        if key is not None:
            metadata.append(("authorization", authorization(key)))
        method = self.channel.unary_unary(METHOD, OrderNumbersRequest.SerializeToString)
        try:
            raw, call = method.with_call(
                OrderNumbersRequest(**request), metadata=metadata, timeout=self.timeout_seconds
            )
        except grpc.RpcError as error:
            return refusal_of(error)
        headers = _headers(call)
        body = _as_dict(OrderNumbersResponse.FromString(raw))
        return Response(200, body, headers["x-request-id"], headers, raw)


def refusal_of(error: Any) -> Response:
    """The response of a refused call. Fails unless its status, its details and its envelope agree."""
    status = rpc_status.from_call(error)
    assert status is not None, f"a bare status: {error}"
    info, *retry, packed = status.details
    envelope = ErrorResponse()
    assert packed.Unpack(envelope)
    spec = ERRORS[Code(envelope.error.code)]
    assert info.TypeName() == "google.rpc.ErrorInfo"
    assert envelope.error.code.encode() in info.value
    assert error.code().name == spec.grpc_status
    assert error.details() == status.message == envelope.error.message
    headers = _headers(error)
    assert [detail.TypeName() for detail in retry] == ["google.rpc.RetryInfo"] * bool(spec.retry_seconds)
    raw = envelope.SerializeToString()
    return Response(spec.http_status, _as_dict(envelope), headers["x-request-id"], headers, raw)


def _headers(call: Any) -> dict[str, str]:
    return {name: value for name, value in [*call.initial_metadata(), *call.trailing_metadata()]}  # noqa: C416


def _as_dict(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
