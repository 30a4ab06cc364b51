"""A worker's gRPC servers: who may have their port, and what they do with the calls that run when they stop."""

import asyncio

import grpc
import pytest
from sqlalchemy import text

from ordernumbers.v1.orders_pb2 import OrderNumbersRequest, OrderNumbersResponse
from server.config import Settings
from server.rpc.server import LISTENERS, SERVICE, Server
from tests.support.stack import free_ports

ORDER = f"/{SERVICE.full_name}/OrderNumbers"


@pytest.fixture
def settings():
    return Settings(grpc_port=free_ports(1), workers=1, drain_ms=50, lock_timeout_ms=3000)


def serving(settings, database, work):
    """Do `work(until_stopped)` while a worker serves. `until_stopped` is the task of the worker."""

    async def main():
        server = await Server.start(settings, database.url, settings.grpc_port)

        async def until_stopped():
            try:
                await server.wait_until_ended()
            finally:
                await server.drain()

        task = asyncio.create_task(until_stopped())
        await asyncio.sleep(0.1)
        try:
            return await work(task)
        finally:
            if not task.cancelling():
                task.cancel()
            await asyncio.wait({task})

    return asyncio.run(main())


def test_calls_that_run_longer_than_the_drain_get_their_responses(settings, database, customer):
    numbers = customer.numbers(2 * LISTENERS)
    metadata = [("authorization", f"Bearer {customer.key}")]

    async def work(task):
        async with asyncio.TaskGroup() as group:
            channels = [
                grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}", [("grpc.use_local_subchannel_pool", 1)])
                for _ in numbers
            ]
            with database.engine.begin() as connection:
                connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
                orders = [
                    group.create_task(order(channel, number)) for channel, number in zip(channels, numbers, strict=True)
                ]
                await asyncio.sleep(0.3)
                task.cancel()
                await asyncio.sleep(0.5)
        for channel in channels:
            await channel.close()
        return [each.result() for each in orders]

    async def order(channel, number):
        request = OrderNumbersRequest(numbers=[number]).SerializeToString()
        answer = await channel.unary_unary(ORDER)(request, metadata=metadata, timeout=10)
        (row,) = OrderNumbersResponse.FromString(answer).data
        return row.number

    assert serving(settings, database, work) == numbers


def test_two_workers_never_share_a_port(settings, database):
    async def work(_):
        with pytest.raises(OSError, match=rf"port {settings.grpc_port} of 127\.0\.0\.1 is in use"):
            await Server.start(settings, database.url, settings.grpc_port)

    serving(settings, database, work)


def test_an_address_of_another_machine_is_an_error_with_its_reason(settings, database):
    elsewhere = settings.model_copy(update={"grpc_bind": "192.0.2.7"})
    with pytest.raises(OSError, match=r"cannot be used: .*assign requested address"):
        asyncio.run(Server.start(elsewhere, database.url, settings.grpc_port))
