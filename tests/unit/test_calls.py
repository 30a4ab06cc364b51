"""What every call goes through, around a method of this test."""

import asyncio
from types import SimpleNamespace
from uuid import UUID

import grpc
import pytest

from server.api.orders import PhoneNumberService
from server.batching import Response
from server.config import Settings
from server.rpc.calls import Calls
from server.rpc.server import SERVICE
from server.scopes import SCOPES
from server.store.reads import Principal


class Authenticator:
    """Accepts every key, and counts renewals."""

    def __init__(self):
        self.renewed = 0

    async def authenticate(self, authorization):
        return Principal(b"", str(UUID(int=1)), str(UUID(int=2)), frozenset(SCOPES))

    def renew(self, principal, seen):
        self.renewed += 1


def call(method, *, is_full=lambda name: False):
    """Make one call of a method. Return its status, and how often a key was renewed."""

    async def work():
        authenticator = Authenticator()
        server = grpc.aio.server()
        calls = Calls(Settings(), authenticator, is_full)
        server.add_generic_rpc_handlers([calls.handlers(SERVICE, SimpleNamespace(OrderNumbers=method))])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                await channel.unary_unary("/ordernumbers.v1.PhoneNumberService/OrderNumbers")(b"\x0a\x03+12")
                return grpc.StatusCode.OK, authenticator.renewed
            except grpc.aio.AioRpcError as error:
                return error.code(), authenticator.renewed
            finally:
                await server.stop(None)

    return asyncio.run(work())


@pytest.mark.parametrize("key_is_valid", [True, False])
def test_only_a_call_that_read_its_key_renews_the_cached_key(key_is_valid):
    async def method(request, call):
        return Response(b"", key_is_valid=key_is_valid)

    assert call(method) == (grpc.StatusCode.OK, int(key_is_valid))


def test_a_full_queue_refuses_its_method_and_no_other():
    async def method(request, call):
        return Response(b"")

    full = PhoneNumberService(SimpleNamespace(is_full=True)).is_full
    assert call(method, is_full=full) == (grpc.StatusCode.UNAVAILABLE, 0)
    assert not full("GetNumber")
    assert not PhoneNumberService(SimpleNamespace(is_full=False)).is_full("OrderNumbers")
