"""Many clients search for the same at the same time, and order what they found: most get it at the first try."""

import pytest

from tests.support.crowd import gather
from tests.support.inventory import new_area_code, stock

CLIENTS, QUANTITY, FREE = 50, 2, 1000
SHARE_MIN = 0.9


def share_of_first_tries(service, keys, area_code):
    """The share of clients that could order what their search had found."""

    async def search_and_order(rpc, key):
        found = await rpc("SearchNumbers", key, area_code=area_code, quantity=QUANTITY)
        numbers = [row["number"] for row in found.data]
        assert len(numbers) == QUANTITY
        return (await rpc("OrderNumbers", key, numbers=numbers)).code

    codes = gather(service, lambda rpc: [search_and_order(rpc, key) for key in keys], only_rest=True)
    assert set(codes) <= {"OK", "INSUFFICIENT_INVENTORY"}
    return codes.count("OK") / len(codes)


@pytest.mark.parametrize("organizations", [1, CLIENTS])
def test_most_clients_can_order_what_they_found(service, open_customer, times, organizations):
    customers = [open_customer() for _ in range(organizations)]
    keys = [customers[i % organizations].key for i in range(CLIENTS)]
    for _ in range(times(3, 50)):
        area_code = new_area_code()
        stock(customers[0], area_code, FREE)
        share = share_of_first_tries(service, keys, area_code)
        print(f"{organizations} organizations: {share:.0%} of {CLIENTS} clients succeed at the first try")
        assert share >= SHARE_MIN
