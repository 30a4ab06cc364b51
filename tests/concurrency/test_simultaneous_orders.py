"""Many orders at once, on all workers: no number is sold twice, no credit is overspent, no other error occurs."""

import asyncio
import random
from collections import Counter

import grpc
import pytest
from grpc_status import rpc_status

from ordernumbers.v1.errors_pb2 import ErrorResponse
from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_number_service_pb2_grpc import PhoneNumberServiceStub
from server.store.check import violations


def code_of(error):
    refusal = ErrorResponse()
    rpc_status.from_call(error).details[-1].Unpack(refusal)
    return refusal.error.code


def send_all(targets, orders):
    """Send all orders (key, numbers) at once, spread over the targets. Return their codes, "OK" for a sale."""

    async def send(stub, key, numbers):
        try:
            metadata = (("authorization", f"Bearer {key}"),)
            await stub.OrderNumbers(OrderNumbersRequest(numbers=numbers), metadata=metadata, timeout=30)
        except grpc.aio.AioRpcError as error:
            return code_of(error)
        return "OK"

    async def run():
        channels = [grpc.aio.insecure_channel(target) for target in targets]
        stubs = [PhoneNumberServiceStub(channel) for channel in channels]
        try:
            return await asyncio.gather(*(send(stubs[i % len(stubs)], *order) for i, order in enumerate(orders)))
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    return asyncio.run(run())


@pytest.mark.parametrize("organizations", [1, 20])
def test_exactly_one_of_200_orders_of_one_number_is_placed(service, open_customer, organizations):
    customers = [open_customer() for _ in range(organizations)]
    (number,) = customers[0].numbers(1)
    codes = send_all(service.grpc_targets, [(customers[i % organizations].key, [number]) for i in range(200)])
    assert Counter(codes) == {"OK": 1, "INSUFFICIENT_INVENTORY": 199}
    assert sum(len(customer.owned()) for customer in customers) == 1


def test_overlapping_orders_are_placed_completely_or_not_at_all(service, open_customer):
    customers = [open_customer() for _ in range(8)]
    contested = customers[0].numbers(30)
    rng = random.Random(20)
    # Pairs occur both ways round. Locks that follow the request would deadlock.
    orders = [rng.sample(contested, rng.randint(1, 5)) for _ in range(400)]
    codes = send_all(service.grpc_targets, [(rng.choice(customers).key, numbers) for numbers in orders])
    sold = [number for numbers, code in zip(orders, codes, strict=True) if code == "OK" for number in numbers]
    assert set(codes) == {"OK", "INSUFFICIENT_INVENTORY"}
    assert len(sold) == len(set(sold))
    assert set(sold) == set().union(*(customer.owned() for customer in customers))
    assert violations(service.database.engine) == []


def test_credit_for_seven_orders_places_exactly_seven_of_forty(service, open_customer):
    customer = open_customer(credit_micros=7_999_999)
    codes = send_all(service.grpc_targets, [(customer.key, [number]) for number in customer.numbers(40)])
    assert Counter(codes) == {"OK": 7, "INSUFFICIENT_CREDIT": 33}
    assert (len(customer.owned()), customer.balance_micros()) == (7, 999_999)


def test_no_order_is_placed_after_its_key_is_revoked(service, open_customer):
    customer = open_customer()
    numbers = customer.numbers(300)

    async def run():
        loop = asyncio.get_running_loop()
        orders = loop.run_in_executor(None, send_all, service.grpc_targets, [(customer.key, [n]) for n in numbers])
        while not await loop.run_in_executor(None, customer.owned):
            pass
        await loop.run_in_executor(None, customer.revoke)
        owned = await loop.run_in_executor(None, customer.owned)
        return owned, await orders

    owned, codes = asyncio.run(run())
    assert set(codes) <= {"OK", "UNAUTHORIZED"}
    assert customer.owned() == owned
    assert len(owned) == codes.count("OK")
