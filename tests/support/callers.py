"""Every RPC over REST and gRPC. Both return a `Response`, so that one test can compare them."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc
import httpx
from google.api import annotations_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from ordernumbers.v1.errors_pb2 import ErrorResponse
from ordernumbers.v1.phone_number_service_pb2 import DESCRIPTOR
from server.errors import ERRORS, Code

ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
SERVICE = DESCRIPTOR.services_by_name["PhoneNumberService"]
RPCS = [method.name for method in SERVICE.methods]
METHOD = "/ordernumbers.v1.PhoneNumberService/OrderNumbers"
ROUTE = "/v1/phone-numbers/orders"
TIMEOUT_SECONDS = 20


class Response(NamedTuple):
    """`status` is an HTTP status. For gRPC it is the one that REST has for the same refusal."""

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


class Route(NamedTuple):
    """Where REST has an RPC: its `google.api.http` option."""

    verb: str
    template: str
    takes_body: bool

    @property
    def path_fields(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.template)

    def path(self, request: Mapping[str, Any]) -> str:
        """The path with the request's values in it, percent-encoded. A value that is absent is an empty segment."""
        return re.sub(r"{(\w+)}", lambda field: quote(str(request.get(field[1], "")), safe=""), self.template)

    def beside_path(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The members of the body, or the parameters of the query."""
        return {name: value for name, value in request.items() if name not in self.path_fields}


def route_of(rpc: str) -> Route:
    rule = SERVICE.methods_by_name[rpc].GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return Route(verb.upper(), getattr(rule, verb), rule.body == "*")


def query_of(parameters: Mapping[str, Any]) -> str:
    """The query of a URL. A parameter that is None is absent."""
    present = [(name, value) for name, value in parameters.items() if value is not None]
    return "&".join(f"{name}={quote(_as_text(value), safe='')}" for name, value in present)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def exactly(target: str) -> dict[str, Any]:
    """The extensions with which httpx sends this target. By itself it resolves ".." and corrects bad escapes."""
    return {"target": target.encode()}


@dataclass
class Rest:
    """Calls through Envoy with JSON."""

    client: httpx.Client

    def __call__(self, key: str | None, *, idempotency_key: HeaderValues = None, **request: Any) -> Response:
        """Call OrderNumbers."""
        return self.rpc("OrderNumbers", key, header_key=idempotency_key, **request)

    def rpc(self, name: str, key: str | None, /, *, header_key: HeaderValues = None, **request: Any) -> Response:
        """Call any RPC. `header_key` is the idempotency key of the call, `request` has the request's fields."""
        route = route_of(name)
        target, members = route.path(request), route.beside_path(request)
        headers = [("idempotency-key", value) for value in _as_list(header_key)]
        if route.takes_body:
            return self.send(route.verb, target, key, json.dumps(members).encode(), headers)
        query = query_of(members)
        return self.send(route.verb, f"{target}?{query}" if query else target, key, None, headers)

    def post(self, key: str | None, body: bytes, headers: Any = (), **more: str) -> Response:
        """Call OrderNumbers with any body."""
        return self.send("POST", ROUTE, key, body, [*headers, *more.items()])

    def send(self, verb: str, target: str, key: str | None, body: bytes | None = None, headers: Any = ()) -> Response:
        """Send any request. `target` is the path with the query, as it is sent."""
        sent: list[tuple[str, Any]] = [*headers] if body is None else [("content-type", "application/json"), *headers]
        if (value := authorization(key)) is not None:
            sent.append(("authorization", value))
        http = self.client.request(verb, "/", content=body, headers=sent, extensions=exactly(target))
        return Response(http.status_code, http.json(), http.headers["x-request-id"], dict(http.headers), http.content)


@dataclass
class Grpc:
    """Calls over gRPC, to a worker or through Envoy."""

    channel: grpc.Channel
    timeout_seconds: float = TIMEOUT_SECONDS

    def __call__(self, key: str | None, *, idempotency_key: HeaderValues = None, **request: Any) -> Response:
        """Call OrderNumbers."""
        return self.rpc("OrderNumbers", key, header_key=idempotency_key, **request)

    def rpc(self, name: str, key: str | None, /, *, header_key: HeaderValues = None, **request: Any) -> Response:
        """Call any RPC. `header_key` is the idempotency key of the call, `request` has the request's fields."""
        method = SERVICE.methods_by_name[name]
        metadata: list[tuple[str, Any]] = [("idempotency-key", value) for value in _as_list(header_key)]
        if key is not None:
            metadata.append(("authorization", authorization(key)))
        message = GetMessageClass(method.input_type)(**request)
        send = self.channel.unary_unary(f"/{SERVICE.full_name}/{name}")
        try:
            raw, call = send.with_call(message.SerializeToString(), metadata=metadata, timeout=self.timeout_seconds)
        except grpc.RpcError as error:
            return refusal_of(error, route_of(name).path_fields)
        headers = _headers(call)
        body = _as_dict(GetMessageClass(method.output_type).FromString(raw))
        return Response(200, body, headers["x-request-id"], headers, raw)


def refusal_of(error: Any, path_fields: Collection[str] = ()) -> Response:
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
    http_status = _http_status(envelope, path_fields)
    assert headers.get("http-status", http_status) == http_status  # the edge removes the header
    raw = envelope.SerializeToString()
    return Response(int(http_status), _as_dict(envelope), headers["x-request-id"], headers, raw)


def _http_status(envelope: ErrorResponse, path_fields: Collection[str]) -> str:
    """The HTTP status that REST has for the refusal. It is 400 when a field of the path breaks a rule."""
    error = envelope.error
    if error.code == Code.VALIDATION_FAILED and set(path_fields) & error.details.fields.keys():
        return "400"
    return str(ERRORS[Code(error.code)].http_status)


def _headers(call: Any) -> dict[str, str]:
    return {name: value for name, value in [*call.initial_metadata(), *call.trailing_metadata()]}  # noqa: C416


def _as_dict(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
