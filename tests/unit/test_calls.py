"""What every call goes through, around a method of this test."""

import asyncio
from types import SimpleNamespace
from typing import NamedTuple
from uuid import UUID

import grpc
import pytest

from ordernumbers.v1.inventory_pb2 import GetHoldRequest
from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_numbers_pb2 import AttachCampaignRequest, UpdateNumberRequest
from server.admission import Response
from server.api.service import READS, PhoneNumberService
from server.config import Settings
from server.rpc.calls import Calls
from server.rpc.server import SERVICE
from server.scopes import SCOPES
from server.store.reads import Principal


class Authenticator:
    """Accepts every key, and counts renewals."""

    def __init__(self):
        self.renewed = 0

    def find_cached(self, authorization):
        return Principal(b"", str(UUID(int=1)), str(UUID(int=2)), frozenset(SCOPES))

    def renew(self, principal, seen):
        self.renewed += 1


ORDER = OrderNumbersRequest(numbers=["+12"])
METHODS = [method.name for method in SERVICE.methods]


class Outcome(NamedTuple):
    status: grpc.StatusCode
    http_status: str | None = None
    renewed: int = 0
    """How often a key was renewed."""


def call(method, request=ORDER, *, is_full=lambda name: False, metadata=()):
    """Make one call of a method, by the name of its request. All methods are `method`."""
    name = type(request).__name__.removesuffix("Request")

    async def work():
        authenticator = Authenticator()
        server = grpc.aio.server()
        handlers = Calls(Settings(), authenticator, is_full).handlers(
            SERVICE, SimpleNamespace(**dict.fromkeys(METHODS, method))
        )
        server.add_generic_rpc_handlers([handlers])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                ask = channel.unary_unary(f"/{SERVICE.full_name}/{name}")
                await ask(request.SerializeToString(), metadata=metadata)
                return Outcome(grpc.StatusCode.OK, renewed=authenticator.renewed)
            except grpc.aio.AioRpcError as error:
                http_status = dict(error.trailing_metadata()).get("http-status")
                return Outcome(error.code(), http_status, authenticator.renewed)
            finally:
                await server.stop(None)

    return asyncio.run(work())


@pytest.mark.parametrize("key_is_valid", [True, False])
def test_only_a_call_that_read_its_key_renews_the_cached_key(key_is_valid):
    async def method(request, call):
        return Response(b"", key_is_valid=key_is_valid)

    assert call(method) == Outcome(grpc.StatusCode.OK, renewed=int(key_is_valid))


def is_full(*full):
    """`is_full` of a service in which these are full: `batcher`, `writer` or `reads`."""
    parts = {name: SimpleNamespace(is_full=name in full) for name in ("batcher", "writer", "reads")}
    return PhoneNumberService(Settings(), **parts).is_full


def test_a_full_queue_refuses_its_methods_and_no_others():
    async def method(request, call):
        return Response(b"")

    reads = {name for name in METHODS if name.startswith(("Get", "List", "Find", "Search"))}
    assert reads == READS
    limited = {"batcher": {"OrderNumbers"}, "reads": reads, "writer": {*METHODS} - reads - {"OrderNumbers"}}
    for part, refused in limited.items():
        assert {name for name in METHODS if is_full(part)(name)} == refused
    assert call(method, is_full=is_full("batcher")) == Outcome(grpc.StatusCode.UNAVAILABLE, "503")
    assert call(method, is_full=is_full("writer", "reads")) == Outcome(grpc.StatusCode.OK)


ID = "0190b0a0-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("request_", "http_status"),
    [
        (OrderNumbersRequest(), "422"),
        (OrderNumbersRequest(numbers=["+12"], campaign_id="x"), "422"),
        (GetHoldRequest(id="x"), "400"),
        (GetHoldRequest(), "400"),
        (UpdateNumberRequest(id=ID, campaign_id="x"), "422"),
        (UpdateNumberRequest(id="x"), "400"),
        (UpdateNumberRequest(id="x", campaign_id="x"), "400"),
        (AttachCampaignRequest(id=ID), "422"),
        (AttachCampaignRequest(campaign_id=ID), "400"),
    ],
    ids=repr,
)
def test_a_field_of_the_path_that_breaks_its_rule_is_400_and_any_other_422(request_, http_status):
    async def never(request, call):
        raise AssertionError("called")

    assert call(never, request_) == Outcome(grpc.StatusCode.INVALID_ARGUMENT, http_status)


def test_a_malformed_idempotency_key_beside_a_malformed_path_is_400():
    key = [("idempotency-key", "a b")]
    assert call(None, ORDER, metadata=key) == Outcome(grpc.StatusCode.INVALID_ARGUMENT, "422")
    assert call(None, GetHoldRequest(id="x"), metadata=key) == Outcome(grpc.StatusCode.INVALID_ARGUMENT, "400")
