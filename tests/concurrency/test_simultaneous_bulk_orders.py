"""Bulk orders at the same time take different numbers, and none is refused while enough numbers are free."""

from collections import Counter

import pytest

from tests.support.crowd import gather
from tests.support.inventory import new_area_code, stock

CLIENTS, QUANTITY = 50, 20


@pytest.fixture(params=[1, CLIENTS])
def customers(request, open_customer):
    return [open_customer() for _ in range(request.param)]


def bulk_orders(service, customers, area_code):
    """Send all bulk orders at once, and return their replies."""
    keys = [customers[i % len(customers)].key for i in range(CLIENTS)]
    return gather(
        service,
        lambda rpc: [
            rpc("BulkOrderNumbers", key, quantity=QUANTITY, area_code=area_code, header_key=f"k{i}")
            for i, key in enumerate(keys)
        ],
    )


def assigned(replies):
    """The numbers in the replies. None is in two of them."""
    numbers = [row["number"] for reply in replies if reply.code == "OK" for row in reply.data["assigned_numbers"]]
    assert len(set(numbers)) == len(numbers)
    return set(numbers)


def owned(customers):
    return set().union(*(customer.owned() for customer in customers))


def test_all_are_filled_when_there_are_just_enough_numbers(service, customers):
    area_code = new_area_code()
    numbers = stock(customers[0], area_code, CLIENTS * QUANTITY)
    replies = bulk_orders(service, customers, area_code)
    assert Counter(reply.code for reply in replies) == {"OK": CLIENTS}
    assert assigned(replies) == owned(customers) == set(numbers)


def test_only_the_one_that_finds_too_few_is_refused(service, customers):
    area_code = new_area_code()
    numbers = stock(customers[0], area_code, CLIENTS * QUANTITY - 10)
    replies = bulk_orders(service, customers, area_code)
    (refused,) = [reply for reply in replies if reply.code != "OK"]
    assert (refused.code, refused.data) == (
        "INSUFFICIENT_INVENTORY",
        {"available_count": 10, "unavailable": []},
    )
    assert assigned(replies) == owned(customers)
    assert len(set(numbers) - owned(customers)) == 10


def test_a_refused_bulk_order_leaves_its_numbers_to_the_others(service, open_customer):
    """Poor organizations choose numbers too, and lock them until they are refused."""
    area_code = new_area_code()
    rich, poor = open_customer(), open_customer(credit_micros=0)
    numbers = stock(rich, area_code, CLIENTS * QUANTITY // 2)
    customers = [rich, poor]
    replies = bulk_orders(service, customers, area_code)
    codes = [Counter(reply.code for reply in replies[i::2]) for i in range(2)]
    assert codes[0] == {"OK": CLIENTS // 2}
    # Those that came last found nothing.
    assert set(codes[1]) <= {"INSUFFICIENT_CREDIT", "INSUFFICIENT_INVENTORY"}
    assert rich.owned() == set(numbers)
