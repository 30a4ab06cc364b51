"""Orders as the order transaction takes them."""

from typing import Any

from uuid_utils.compat import uuid7

from server.rules.values import Order
from tests.support.customer import Customer


def make_order(organization_id: object, *numbers: str, api_key_id: object = None, **fields: Any) -> Order:
    """An order with new ids."""
    return Order(
        id=str(uuid7()),
        organization_id=str(organization_id),
        api_key_id=str(api_key_id or uuid7()),
        scope="numbers:write",
        request_id="",
        numbers=numbers,
        assignment_ids=tuple(str(uuid7()) for _ in numbers),
        **fields,
    )


def order_of(customer: Customer, *numbers: str, **fields: Any) -> Order:
    """An order of a customer, with its key."""
    return make_order(customer.id, *numbers, api_key_id=customer.key_id, **fields)
