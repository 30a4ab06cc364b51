"""Everything that changes numbers, at the same time, on few numbers and few organizations: no deadlock, no 5xx."""

import asyncio
import itertools
import random
from collections import Counter
from contextlib import contextmanager, suppress
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import text

from server.errors import OperatorError
from server.store import operator_numbers
from server.store.check import violations
from server.store.inventory import import_csv
from tests.support.crowd import gather
from tests.support.inventory import PASS, new_area_code, stock, values_of
from tests.support.retries import in_transaction
from tests.support.stack import wait_until

CLIENTS = 24
CODES = {"OK", "INSUFFICIENT_INVENTORY", "NOT_FOUND", "VALIDATION_FAILED", "UNAUTHORIZED", "FORBIDDEN"}
LOCK_NUMBERS = text("SELECT FROM phone_number WHERE number = ANY(:numbers) ORDER BY number FOR UPDATE")
LOCK_ORGANIZATIONS = text("SELECT FROM organization WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@contextmanager
def deadlock_timeout(url, milliseconds):
    """Let PostgreSQL look for deadlocks so soon. By default our lock_timeout ends them first, and none is counted."""

    def alter(command):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM {command}")
            connection.execute("SELECT pg_reload_conf()")

    alter(f"SET deadlock_timeout = {milliseconds}")
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            wait_until(lambda: connection.execute("SHOW deadlock_timeout").fetchone() == (f"{milliseconds}ms",))
        yield
    finally:
        alter("RESET deadlock_timeout")


class Storm:
    """Clients of a few organizations that all want the same numbers. Each step is a random call."""

    def __init__(self, customers, area_code, numbers):
        self.customers = customers
        self.area_code = area_code
        self.numbers = numbers
        self.keys = {customer.id: [customer.key] for customer in customers}
        self.campaigns = [(customer, str(customer.campaign())) for customer in customers]
        # Owners and ids, newest last. The first exist nowhere.
        self.assignments, self.holds, self.orders = (
            [(customer, str(customer.id)) for customer in customers] for _ in "123"
        )
        self.codes = Counter()

    async def client(self, rpc, steps):
        calls = [
            *[self.order] * 5,
            *[self.hold, self.end_hold] * 2,
            *(self.update, self.attach, self.detach),
            *[self.release, self.bulk_release] * 2,
            *[self.bulk_order] * 2,
            *(self.search, self.list, self.read),
        ]
        for _ in range(steps):
            await random.choice(calls)(rpc)

    async def send(self, rpc, name, customer, **request):
        if random.random() < 0.1:
            customer = random.choice(self.customers)
        key = random.choice(self.keys[customer.id])
        reply = await rpc(name, key, header_key=random.choice([None, str(random.random())]), **request)
        self.codes[name, reply.code] += 1
        return reply

    def a_customer(self):
        return random.choice(self.customers)

    def some_numbers(self):
        return random.sample(self.numbers, random.randint(1, 3))

    # ---------------------------------------------------------------- calls

    async def order(self, rpc):
        customer, routing = self.routing()
        reply = await self.send(rpc, "OrderNumbers", customer, numbers=self.some_numbers(), **routing)
        if reply.code == "OK":
            self.assignments += [(customer, row["id"]) for row in reply.data]

    async def bulk_order(self, rpc):
        customer, routing = self.routing()
        wanted = {"quantity": random.randint(1, 3), "area_code": self.area_code}
        reply = await self.send(rpc, "BulkOrderNumbers", customer, **wanted, **routing)
        if reply.code == "OK":
            self.assignments += [(customer, row["id"]) for row in reply.data["assigned_numbers"]]
            self.orders.append((customer, reply.data["order_id"]))

    def routing(self):
        """A customer, and what it orders its numbers with."""
        customer, campaign = random.choice(self.campaigns)
        return customer, random.choice([{}, {"label": "x"}, {"campaign_id": campaign}])

    async def hold(self, rpc):
        customer = self.a_customer()
        reply = await self.send(rpc, "HoldNumbers", customer, numbers=self.some_numbers())
        if reply.code == "OK":
            self.holds.append((customer, reply.data["id"]))

    async def end_hold(self, rpc):
        customer, id_ = random.choice(self.holds[-3:])
        await self.send(rpc, "ReleaseHold", customer, id=id_)

    async def update(self, rpc):
        customer, id_ = random.choice(self.assignments[-8:])
        await self.send(rpc, "UpdateNumber", customer, id=id_, label=random.choice("abc"))

    async def attach(self, rpc):
        customer, id_ = random.choice(self.assignments[-8:])
        campaigns = [campaign for owner, campaign in self.campaigns if owner == customer]
        await self.send(rpc, "AttachCampaign", customer, id=id_, campaign_id=random.choice(campaigns))

    async def detach(self, rpc):
        customer, id_ = random.choice(self.assignments[-8:])
        await self.send(rpc, "DetachCampaign", customer, id=id_)

    async def release(self, rpc):
        customer, id_ = random.choice(self.assignments[-12:])
        await self.send(rpc, "ReleaseNumber", customer, id=id_)

    async def bulk_release(self, rpc):
        ids = random.choices(self.assignments[-12:], k=4)
        await self.send(rpc, "BulkReleaseNumbers", ids[0][0], ids=[id_ for _, id_ in ids])

    async def search(self, rpc):
        await self.send(rpc, "SearchNumbers", self.a_customer(), area_code=self.area_code, quantity=5)

    async def list(self, rpc):
        await self.send(rpc, "ListNumbers", self.a_customer(), limit=10)

    async def read(self, rpc):
        for name, ids in (("GetNumber", self.assignments), ("GetHold", self.holds), ("GetOrder", self.orders)):
            customer, id_ = random.choice(ids[-8:])
            await self.send(rpc, name, customer, id=id_)

    # ---------------------------------------------------------------- operators

    async def operator(self, steps):
        for step in range(steps):
            owner, campaign = random.choice(self.campaigns)
            status = random.choice(["ACTIVE", "ACTIVE", "PENDING"])
            await asyncio.to_thread(self.change_keys, self.a_customer())
            await asyncio.to_thread(owner.set_campaign, campaign, status)
            await asyncio.to_thread(self.import_prices, step)
            await asyncio.to_thread(self.end_rests)
            await asyncio.to_thread(self.take_back)

    def change_keys(self, customer):
        key = customer.new_key("numbers:read", "numbers:write")
        self.keys[customer.id].append(key)
        if len(self.keys[customer.id]) > 3:
            customer.revoke_text(self.keys[customer.id].pop(1))

    def import_prices(self, step):
        header = "number,number_type,sms_enabled,mms_enabled,price"
        rows = [f"{number},local,true,false,{1 + (step + i) % 3}.00" for i, number in enumerate(self.numbers)]
        import_csv(self.customers[0].engine, [header, *random.sample(rows, len(rows))])

    def take_back(self):
        """As `ordernumbers number release` does."""
        number = random.choice(self.numbers)
        with suppress(OperatorError):
            self.do(lambda connection: operator_numbers.release(connection, number, rest_ms=1000))
            self.codes["operator", "OK"] += 1

    def end_rests(self):
        """Let the time of a rest pass. Otherwise each number would soon rest for its last owner."""
        ids = [customer.id for customer in self.customers]

        def move(connection):
            connection.execute(LOCK_NUMBERS, {"numbers": self.numbers})
            connection.execute(LOCK_ORGANIZATIONS, {"ids": ids})
            for id_, statement in itertools.product(ids, PASS):
                connection.execute(text(statement), {"by": timedelta(days=31), "id": id_})

        self.do(move)

    def do(self, work):
        in_transaction(self.customers[0].engine, work)


@pytest.mark.parametrize("organizations", [1, 3])
def test_a_storm_of_all_calls_has_no_deadlock_and_no_5xx(service, open_customer, times, organizations):
    customers = [open_customer() for _ in range(organizations)]
    area_code = new_area_code()
    storm = Storm(customers, area_code, stock(customers[0], area_code, 20))
    before = deadlocks(customers[0]), service.postgres_log.read_text().count("deadlock detected")
    steps = times(25, 150)
    with deadlock_timeout(service.database.url, 10):
        gather(service, lambda rpc: [*(storm.client(rpc, steps) for _ in range(CLIENTS)), storm.operator(steps)])
    print(sorted(storm.codes.items()))
    assert {code for _, code in storm.codes} <= CODES
    writes = {"OrderNumbers", "BulkOrderNumbers", "HoldNumbers", "ReleaseHold", "UpdateNumber", "ReleaseNumber"}
    assert {name for name, code in storm.codes if code == "OK"} >= writes
    assert violations(service.database.engine) == []
    assert (deadlocks(customers[0]), service.postgres_log.read_text().count("deadlock detected")) == before


def deadlocks(customer):
    (count,) = values_of(customer, DEADLOCKS)
    return count
