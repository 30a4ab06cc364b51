"""The documented call over each transport, with its answer as one shape: HTTP status, envelope, request id."""

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


class Answer(NamedTuple):
    """`status` is HTTP's; a gRPC answer's is the one its table row has."""

    status: int
    body: dict[str, Any]
    request_id: str
    headers: dict[str, str]
    raw: bytes


def failure(code: str, message: str, request_id: str, *, details: Any = None, data: Any = None) -> dict[str, Any]:
    """The documented envelope."""
    error = {"code": code, "message": message, "request_id": request_id}
    if details is not None:
        error["details"] = details
    return {"success": False, "error": error} | ({} if data is None else {"data": data})


def authorization(key: str | None) -> str | None:
    """What the header says: a key as a bearer's, anything with a blank in it as it is, None for no header."""
    return key if key is None or " " in key else f"Bearer {key}"


Sent = str | list[bytes] | None
"""A header once, several times, or not at all."""


def _values(sent: Sent) -> list[str] | list[bytes]:
    return [] if sent is None else [sent] if isinstance(sent, str) else sent


@dataclass
class Rest:
    """POST through Envoy."""

    client: httpx.Client

    def __call__(self, key: str | None, *, idempotency_key: Sent = None, **request: Any) -> Answer:
        headers = [("idempotency-key", value) for value in _values(idempotency_key)]
        return self.post(key, json.dumps(request).encode(), headers)

    def post(self, key: str | None, body: bytes, headers: Any = (), **more: str) -> Answer:
        sent: list[tuple[str, Any]] = [("content-type", "application/json"), *headers, *more.items()]
        if (value := authorization(key)) is not None:
            sent.append(("authorization", value))
        answer = self.client.post(ROUTE, content=body, headers=sent)
        said = dict(answer.headers)
        return Answer(answer.status_code, answer.json(), answer.headers["x-request-id"], said, answer.content)


@dataclass
class Grpc:
    """A native call, direct or through Envoy."""

    channel: grpc.Channel
    timeout_seconds: float = TIMEOUT_SECONDS

    def __call__(self, key: str | None, *, idempotency_key: Sent = None, **request: Any) -> Answer:
        metadata: list[tuple[str, Any]] = [("idempotency-key", value) for value in _values(idempotency_key)]
        if key is not None:
            metadata.append(("authorization", authorization(key)))
        method = self.channel.unary_unary(METHOD, OrderNumbersRequest.SerializeToString)
        try:
            raw, call = method.with_call(
                OrderNumbersRequest(**request), metadata=metadata, timeout=self.timeout_seconds
            )
        except grpc.RpcError as error:
            return _refusal(error)
        headers = _headers(call)
        body = _as_dict(OrderNumbersResponse.FromString(raw))
        return Answer(200, body, headers["x-request-id"], headers, raw)


def _refusal(error: Any) -> Answer:
    """What a refused call says, after a look that all the ways it is said agree."""
    status = rpc_status.from_call(error)
    assert status is not None, f"a bare status: {error}"
    info, *retry, response = status.details
    envelope = ErrorResponse()
    assert response.Unpack(envelope)
    spec = ERRORS[Code(envelope.error.code)]
    assert info.TypeName() == "google.rpc.ErrorInfo"
    assert envelope.error.code.encode() in info.value
    assert error.code().name == spec.grpc_status
    assert error.details() == status.message == envelope.error.message
    headers = _headers(error)
    assert [detail.TypeName() for detail in retry] == ["google.rpc.RetryInfo"] * bool(spec.retry_seconds)
    raw = envelope.SerializeToString()
    return Answer(spec.http_status, _as_dict(envelope), headers["x-request-id"], headers, raw)


def _headers(call: Any) -> dict[str, str]:
    return {name: value for name, value in [*call.initial_metadata(), *call.trailing_metadata()]}  # noqa: C416


def _as_dict(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
