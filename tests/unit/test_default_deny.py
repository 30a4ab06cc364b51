"""A method without a declared scope refuses every key."""

import asyncio
from types import SimpleNamespace
from uuid import UUID

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

from ordernumbers.v1 import phone_number_service_pb2
from server.config import Settings
from server.rpc.calls import Calls
from server.scopes import SCOPES
from server.store.reads import Principal


class Knows:
    """An authenticator that knows every key, with every scope."""

    def find_cached(self, authorization):
        return Principal(b"", str(UUID(int=1)), str(UUID(int=2)), frozenset(SCOPES))


def undeclared_service():
    """The contract's service as it would be without its required scopes."""
    file = descriptor_pb2.FileDescriptorProto()
    phone_number_service_pb2.DESCRIPTOR.CopyToProto(file)
    for method in file.service[0].method:
        method.ClearField("options")
    pool = descriptor_pool.DescriptorPool()
    for dependency in _dependencies(phone_number_service_pb2.DESCRIPTOR):
        pool.AddSerializedFile(dependency.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("ordernumbers.v1.PhoneNumberService")


def _dependencies(file):
    found = {}
    for dependency in file.dependencies:
        found |= {d.name: d for d in _dependencies(dependency)} | {dependency.name: dependency}
    return found.values()


METHODS = [method.name for method in undeclared_service().methods]


def test_every_method_without_a_declared_scope_refuses_all():
    async def never(request, call):
        raise AssertionError("called")

    async def status_of(channel, name):
        try:
            await channel.unary_unary(f"/ordernumbers.v1.PhoneNumberService/{name}")(b"")
        except grpc.aio.AioRpcError as error:
            return error.code()

    async def ask():
        calls = Calls(Settings(), Knows(), is_full=lambda method: False)
        servicer = SimpleNamespace(**dict.fromkeys(METHODS, never))
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([calls.handlers(undeclared_service(), servicer)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                return {name: await status_of(channel, name) for name in METHODS}
            finally:
                await server.stop(None)

    assert asyncio.run(ask()) == dict.fromkeys(METHODS, grpc.StatusCode.PERMISSION_DENIED)
