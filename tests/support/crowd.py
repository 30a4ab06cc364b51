"""Every RPC over REST and gRPC, for many clients at the same time. callers.py has the same for one client."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple

import grpc
import httpx
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from ordernumbers.v1.errors_pb2 import ErrorResponse
from tests.support.callers import SERVICE, TIMEOUT_SECONDS, query_of, route_of

NO_RESPONSE = "NO_RESPONSE"
"""No response, or an error that only the client library reports."""


class Reply(NamedTuple):
    """What a call returned: "OK", or the code of the refusal, and the whole body."""

    code: str
    body: dict[str, Any] = {}  # noqa: RUF012  it is never changed
    is_replayed: bool = False

    @property
    def data(self) -> Any:
        return self.body["data"]


Rpc = Callable[..., Awaitable[Reply]]
"""`rpc(name, key, header_key=…, seconds=…, **request)`, where `header_key` is the call's idempotency key."""


def rest(client: httpx.AsyncClient) -> Rpc:
    """Calls through Envoy with JSON."""

    async def call(name: str, key: str, *, header_key: str | None = None, seconds: float = 0, **request: Any) -> Reply:
        route = route_of(name)
        members = route.beside_path(request)
        target, content = route.path(request), json.dumps(members) if route.takes_body else None
        if members and content is None:
            target = f"{target}?{query_of(members)}"
        headers = _headers(key, header_key) | ({"content-type": "application/json"} if content else {})
        try:
            response = await client.request(
                route.verb, target, content=content, headers=headers, timeout=seconds or TIMEOUT_SECONDS
            )
            body = response.json()
        except (httpx.TransportError, ValueError):
            return Reply(NO_RESPONSE)
        code = "OK" if body["success"] else body["error"]["code"]
        return Reply(code, body, "idempotency-replayed" in response.headers)

    return call


def over_grpc(channel: grpc.aio.Channel) -> Rpc:
    """Calls over gRPC, to a worker or through Envoy."""

    async def call(name: str, key: str, *, header_key: str | None = None, seconds: float = 0, **request: Any) -> Reply:
        method = SERVICE.methods_by_name[name]
        message = GetMessageClass(method.input_type)(**request).SerializeToString()
        metadata = tuple(_headers(key, header_key).items())
        send = channel.unary_unary(f"/{SERVICE.full_name}/{name}")
        sent = send(message, metadata=metadata, timeout=seconds or TIMEOUT_SECONDS)
        try:
            raw = await sent
        except grpc.aio.AioRpcError as error:
            return _refusal(error)
        is_replayed = ("idempotency-replayed", "true") in (await sent.initial_metadata())
        return Reply("OK", _as_dict(GetMessageClass(method.output_type).FromString(raw)), is_replayed)

    return call


@asynccontextmanager
async def calls_to(rest_url: str, grpc_targets: Sequence[str]) -> AsyncIterator[list[Rpc]]:
    """Ways to call a service: REST, and gRPC to each target."""
    async with AsyncExitStack() as opened:
        limits = httpx.Limits(max_connections=None)
        client = await opened.enter_async_context(httpx.AsyncClient(base_url=rest_url, limits=limits))
        # By default gRPC waits up to two minutes before it connects again.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500)]
        channels = [
            await opened.enter_async_context(grpc.aio.insecure_channel(target, options)) for target in grpc_targets
        ]
        yield [rest(client), *map(over_grpc, channels)]


def gather(service: Any, work: Callable[[Rpc], Sequence[Awaitable[Any]]], *, only_rest: bool = False) -> list[Any]:
    """Do everything that `work(rpc)` returns at the same time. Return the results in that order.

    Each call takes any way to the service: REST, gRPC through the edge, or gRPC to a worker.
    """

    async def main() -> list[Any]:
        targets = [] if only_rest else [service.edge_target, *service.grpc_targets]
        async with calls_to(service.rest_url, targets) as ways:

            def rpc(*args: Any, **request: Any) -> Awaitable[Reply]:
                return random.choice(ways)(*args, **request)

            return await asyncio.gather(*work(rpc))

    return asyncio.run(main())


def _headers(key: str, header_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} | ({} if header_key is None else {"idempotency-key": header_key})


def _refusal(error: grpc.aio.AioRpcError) -> Reply:
    with suppress(ValueError):  # a status that gRPC made, without our details
        status = rpc_status.from_call(error)
        refusal = ErrorResponse()
        if status and status.details[-1].Unpack(refusal):
            return Reply(refusal.error.code, _as_dict(refusal))
    return Reply(NO_RESPONSE)


def _as_dict(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
