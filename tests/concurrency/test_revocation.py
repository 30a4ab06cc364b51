"""A key is revoked while all calls are sent with it: none that begins after the commit reads or changes anything."""

import asyncio
import itertools
from collections import Counter

import pytest

from tests.support.crowd import gather
from tests.support.inventory import all_rows, new_area_code, stock

EARLY, LATE = "EARLY", "LATE"
CALLS_AFTER_REVOCATION = 5


class Load:
    """One client for each kind of call, with one key."""

    def __init__(self, customer, numbers, area_code):
        self.key = customer.key
        self.customer = customer
        self.area_code = area_code
        self.campaign_id = str(customer.campaign())
        self._numbers = iter(numbers)
        self.number_to_check = next(self._numbers)
        self.assignments = []
        self.holds = []
        self.orders = []
        self.is_revoked = False
        self.outcomes = Counter()

    def number(self):
        return next(self._numbers)

    async def prepare(self, rpc):
        for i in range(40):
            reply = await rpc("OrderNumbers", self.key, numbers=[self.number()], header_key=f"order-{i}")
            self.assignments.append(reply.data[0]["id"])
        for _ in range(40):
            self.holds.append((await rpc("HoldNumbers", self.key, numbers=[self.number()])).data["id"])
        reply = await rpc("BulkOrderNumbers", self.key, quantity=1, area_code=self.area_code)
        self.orders.append(reply.data["order_id"])

    def requests(self):
        """By RPC, a function that makes a request which succeeds with a valid key."""
        first, assigned, held = self.assignments[0], iter(self.assignments[1:]), iter(self.holds[1:])
        labels = (f"label {i}" for i in itertools.count())
        names = {
            "OrderNumbers": lambda: {"numbers": [self.number()]},
            "BulkOrderNumbers": lambda: {"quantity": 1, "area_code": self.area_code},
            "HoldNumbers": lambda: {"numbers": [self.number()]},
            "ReleaseHold": lambda: {"id": next(held)},
            "UpdateNumber": lambda: {"id": first, "label": next(labels)},
            "AttachCampaign": lambda: {"id": first, "campaign_id": self.campaign_id},
            "DetachCampaign": lambda: {"id": first},
            "ReleaseNumber": lambda: {"id": next(assigned)},
            "BulkReleaseNumbers": lambda: {"ids": [next(assigned)]},
            "SearchNumbers": lambda: {"area_code": self.area_code},
            "ListNumbers": dict,
            "GetNumber": lambda: {"id": first},
            "GetHold": lambda: {"id": self.holds[0]},
            "GetOrder": lambda: {"id": self.orders[0]},
            "GetBulkOrder": lambda: {"id": self.orders[0]},
            "FindOrder": lambda: {"idempotency_key": "order-0"},
        }
        preview = ("OrderNumbers", lambda: {"numbers": [self.number_to_check], "validate_only": True})
        return [*names.items(), preview]

    async def client(self, rpc, name, make, **options):
        """Send calls until some time after the revocation. Only those are LATE that begin after its commit."""
        left = CALLS_AFTER_REVOCATION
        while left:
            is_late = self.is_revoked
            left -= is_late
            reply = await rpc(name, self.key, **make(), **options)
            self.outcomes[name, LATE if is_late else EARLY, reply.code] += 1
            await asyncio.sleep(0.05)

    async def replaying_client(self, rpc):
        """Sends an order again, whose response is stored."""
        number = self.number()
        await rpc("OrderNumbers", self.key, numbers=[number], header_key="replay")
        await self.client(rpc, "OrderNumbers", lambda: {"numbers": [number]}, header_key="replay")

    async def revoke(self):
        while sum(self.outcomes.values()) < 60:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(self.customer.revoke)
        self.is_revoked = True
        return await asyncio.to_thread(all_rows, self.customer)


@pytest.fixture
def load(service, open_customer):
    customer, area_code = open_customer(), new_area_code()
    stock(customer, area_code, 500)
    load = Load(customer, customer.numbers(1000), area_code)
    gather(service, lambda rpc: [load.prepare(rpc)])
    return load


def test_after_its_revocation_a_key_neither_reads_nor_changes_anything(service, load):
    def work(rpc):
        clients = [load.client(rpc, name, make) for name, make in load.requests()]
        return [load.revoke(), load.replaying_client(rpc), *clients]

    rows, *_ = gather(service, work)
    print(sorted(load.outcomes.items()))
    kinds = {name for name, _ in load.requests()}
    assert {name for name, when, code in load.outcomes if (when, code) == (EARLY, "OK")} == kinds
    late = {(name, code) for name, when, code in load.outcomes if when is LATE}
    assert late == {(name, "UNAUTHORIZED") for name in kinds}
    assert {code for _, _, code in load.outcomes} == {"OK", "UNAUTHORIZED"}
    assert all_rows(load.customer) == rows
