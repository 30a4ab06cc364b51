"""Many buyers at once, over the worker processes: nothing is sold twice, nobody overspends, nothing breaks."""

import asyncio
import random
from collections import Counter

import grpc
import pytest
from grpc_status import rpc_status

from ordernumbers.v1.errors_pb2 import ErrorResponse
from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_number_service_pb2_grpc import PhoneNumberServiceStub
from server.store.check import violations
from tests.support.customer import Customer


@pytest.fixture
def open_customer(service):
    return lambda **credit: Customer.open(service.database.engine, **credit)


def _code(error):
    refusal = ErrorResponse()
    rpc_status.from_call(error).details[-1].Unpack(refusal)
    return refusal.error.code


def buy_all(targets, orders):
    """Send all (key, numbers) at once, spread over the targets; the code of each answer, "OK" for a sale."""

    async def buy(stub, key, numbers):
        try:
            metadata = (("authorization", f"Bearer {key}"),)
            await stub.OrderNumbers(OrderNumbersRequest(numbers=numbers), metadata=metadata, timeout=30)
        except grpc.aio.AioRpcError as error:
            return _code(error)
        return "OK"

    async def run():
        channels = [grpc.aio.insecure_channel(target) for target in targets]
        stubs = [PhoneNumberServiceStub(channel) for channel in channels]
        try:
            return await asyncio.gather(*(buy(stubs[i % len(stubs)], *order) for i, order in enumerate(orders)))
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    return asyncio.run(run())


@pytest.mark.parametrize("organizations", [1, 20])
def test_of_200_buyers_of_one_number_exactly_one_wins(service, open_customer, organizations):
    customers = [open_customer() for _ in range(organizations)]
    (number,) = customers[0].numbers(1)
    answers = buy_all(service.grpc_targets, [(customers[i % organizations].key, [number]) for i in range(200)])
    assert Counter(answers) == {"OK": 1, "INSUFFICIENT_INVENTORY": 199}
    assert sum(len(customer.owned()) for customer in customers) == 1


def test_random_overlapping_baskets_are_sold_wholly_or_not_at_all(service, open_customer):
    """In both directions of every pair, so that locks taken in the order of the request would deadlock."""
    customers = [open_customer() for _ in range(8)]
    hot = customers[0].numbers(30)
    chance = random.Random(20)
    baskets = [chance.sample(hot, chance.randint(1, 5)) for _ in range(400)]
    answers = buy_all(service.grpc_targets, [(chance.choice(customers).key, basket) for basket in baskets])
    sold = [number for basket, answer in zip(baskets, answers, strict=True) if answer == "OK" for number in basket]
    assert set(answers) == {"OK", "INSUFFICIENT_INVENTORY"}
    assert len(sold) == len(set(sold))
    assert set(sold) == set().union(*(customer.owned() for customer in customers))
    assert violations(service.database.engine) == []


def test_credit_for_seven_of_forty_orders_lets_exactly_seven_through(service, open_customer):
    customer = open_customer(credit_micros=7_999_999)
    answers = buy_all(service.grpc_targets, [(customer.key, [number]) for number in customer.numbers(40)])
    assert Counter(answers) == {"OK": 7, "INSUFFICIENT_CREDIT": 33}
    assert (len(customer.owned()), customer.balance_micros()) == (7, 999_999)


def test_no_sale_comes_after_a_revocation_while_orders_pour_in(service, open_customer):
    customer = open_customer()
    numbers = customer.numbers(300)

    async def run():
        loop = asyncio.get_running_loop()
        orders = loop.run_in_executor(None, buy_all, service.grpc_targets, [(customer.key, [n]) for n in numbers])
        while not await loop.run_in_executor(None, customer.owned):
            pass
        await loop.run_in_executor(None, customer.revoke)
        owned = await loop.run_in_executor(None, customer.owned)
        return owned, await orders

    owned, answers = asyncio.run(run())
    assert set(answers) <= {"OK", "UNAUTHORIZED"}
    assert customer.owned() == owned
    assert len(owned) == answers.count("OK")
