"""The whole life of numbers in random sequences of calls, operators' changes and time: the service against a model.

A failure prints the seed of its sequence. `Walk(service, calls, seed)` repeats it.
"""

import itertools
import random
from collections import Counter
from uuid import uuid4

import grpc
import httpx

from server.store.inventory import import_csv
from tests.faults.model import (
    CAMPAIGN_RULES,
    READ,
    ROUTING,
    WRITE,
    Key,
    Model,
    Number,
    Stored,
    canonical,
    without_times,
)
from tests.support.callers import RPCS, TIMEOUT_SECONDS, Grpc, Rest
from tests.support.customer import Customer
from tests.support.inventory import add, let_time_pass

PRICE = 1_000_000
# Digits that no other part of these numbers has. So a search for a block finds exactly its numbers.
AREA_CODES, BLOCK_DIGITS, LAST_DIGITS = ("940", "930"), "5678", "01234"
_blocks = (
    (area_code, "".join(digits)) for area_code in AREA_CODES for digits in itertools.product(BLOCK_DIGITS, repeat=4)
)
UNKNOWN_ID = str(uuid4())
UNKNOWN_NUMBER = "+19999999999"


class Walk:
    """A random sequence of steps. Each response is compared with what the model says."""

    def __init__(self, service, calls, seed):
        self.random = random.Random(seed)
        engine = service.database.engine
        self.engine = engine
        self.calls = calls
        self.codes = Counter()
        credit = [self.random.randint(6, 20), 15]
        self.customers = [Customer.open(engine, credit_micros=credits * PRICE) for credits in credit]
        self.area_code, self.block = next(_blocks)
        lasts = itertools.product(LAST_DIGITS, repeat=3)
        self.unused = (f"+1{self.area_code}{self.block}{''.join(last)}" for last in lasts)
        numbers = add(engine, [next(self.unused) for _ in range(14)])
        self.model = Model(credit, {number: Number() for number in numbers})
        self.keys = [Key(i, customer.key, (READ, WRITE)) for i, customer in enumerate(self.customers)]
        self.sent = []
        for i, customer in enumerate(self.customers):
            self.model.campaigns[str(customer.campaign())] = (i, ("ACTIVE", "VERIFIED"))

    STEPS = (
        *("order",) * 5,
        *("check_order", "bulk_order", "bulk_order", "look_up_order"),
        *("search", "hold", "hold", "hold", "look_at_hold", "look_at_hold", "end_hold", "end_hold"),
        *("list_numbers", "look_at_number", "update", "attach", "attach", "detach", "release", "bulk_release"),
        *("send_again", "new_key", "revoke", "add_credit", "new_campaign", "import_more", "time_passes"),
    )

    def go(self, steps):
        for _ in range(steps):
            getattr(self, self.random.choice(self.STEPS))()
            self.the_database_agrees()

    # ---------------------------------------------------------------- what is chosen

    def some_numbers(self):
        """Mostly numbers that exist. Often some that nobody has."""
        known = list(self.model.numbers)
        free = [number for number in known if self.model.numbers[number].is_free]
        numbers = free if len(free) > 2 and self.random.random() < 0.5 else [*known, UNKNOWN_NUMBER]
        return self.random.sample(numbers, self.random.randint(1, 3))

    def an_id(self, known):
        """Mostly one of the newest."""
        return self.random.choice([*list(known)[-8:], UNKNOWN_ID])

    def routing(self):
        """Fields of a request, each of which may be absent."""
        values = {
            "inbound_url": self.random.choice([None, None, "https://example.com/in"]),
            "label": self.random.choice([None, "a", "b"]),
            "campaign_id": self.random.choice([None, None, None, *self.model.campaigns]),
        }
        return {name: value for name, value in values.items() if value is not None}

    def criteria(self):
        """Two ways to ask for exactly the numbers of this walk. Each uses another index."""
        in_area = {"area_code": self.area_code, "pattern": self.block}
        return self.random.choice([in_area, {"pattern": f"{self.area_code}{self.block}"}])

    def key_for(self, request):
        """Any key. Most calls are by the owner of the thing that they name."""
        if self.random.random() < 0.1:
            return self.random.choice(self.keys)
        owner = self.model.owner_of(request.get("id"))
        usable = [key for key in self.keys if key.text not in self.model.revoked and owner in (None, key.customer)]
        return self.random.choice(usable)

    # ---------------------------------------------------------------- one call

    def send(self, rpc, **request):
        """Send a call. Return its body and its customer, if it was carried out now and not replayed."""
        key, header_key = self.key_for(request), self.random.choice([*[None] * 12, *"uvwxyz"])
        self.sent.append((rpc, key, header_key, request))
        return self.sent_by(self.random.choice(self.calls), rpc, key, header_key, request)

    def sent_by(self, call, rpc, key, header_key, request):
        expected = self.model.expected(rpc, key, header_key, request)
        stored = self.model.stored_for(rpc, header_key, request, key.customer)
        response = call.rpc(rpc, key.text, header_key=header_key, **request)
        code = "OK" if response.status == 200 else response.body["error"]["code"]
        self.codes[rpc, code] += 1
        # Keys are cached for some seconds. A key that was revoked since may still get FORBIDDEN, if it has no scope.
        is_cached = (code, expected) == ("FORBIDDEN", "UNAUTHORIZED") and len(key.scopes) == 1
        assert code == expected or is_cached, (expected, rpc, request, response)
        if code == "INSUFFICIENT_INVENTORY":
            self.assert_shortage(key.customer, request, response.body["data"])
        if code != "OK":
            return None, None
        assert response.headers.get("idempotency-replayed") == ("true" if stored else None)
        if stored:
            assert response.body == stored.body
            return None, None
        if header_key and self.model.stores(rpc, request):
            self.model.stored[key.customer, header_key] = Stored(rpc, canonical(request), response.body)
        return response.body, key.customer

    def assert_shortage(self, customer, request, data):
        if "quantity" in request:
            assert data == {"available_count": len(self.model.free), "unavailable": []}
        else:
            gone = self.model.unavailable(customer, request["numbers"])
            assert data == {"available_count": len(request["numbers"]) - len(gone), "unavailable": gone}

    # ---------------------------------------------------------------- orders

    def order(self):
        numbers, routing = self.some_numbers(), self.routing()
        body, customer = self.send("OrderNumbers", numbers=numbers, **routing)
        if body:
            assert [row["number"] for row in body["data"]] == numbers
            assert all(routing_of(row) == routing for row in body["data"])
            self.model.order(customer, body["data"])

    def check_order(self):
        numbers = self.some_numbers()
        body, _ = self.send("OrderNumbers", numbers=numbers, validate_only=True)
        if body:
            assert body["meta"] == {"total_price": f"{len(numbers)}.00"}
            assert [row["number"] for row in body["data"]] == numbers

    def bulk_order(self):
        quantity, routing = self.random.randint(1, 3), self.routing()
        body, customer = self.send("BulkOrderNumbers", quantity=quantity, **self.criteria(), **routing)
        if body:
            order = body["data"]
            numbers = {row["number"] for row in order["assigned_numbers"]}
            assert len(numbers) == order["assigned_count"] == quantity
            assert numbers <= self.model.free
            assert all(routing_of(row) == routing for row in order["assigned_numbers"])
            self.model.order(customer, order["assigned_numbers"], order["order_id"], is_bulk=True)

    def look_up_order(self):
        used = [header_key for (_, header_key), stored in self.model.stored.items() if "Order" in stored.rpc]
        header_key = self.random.choice(used or ["unused"])
        body, customer = self.send("FindOrder", idempotency_key=header_key)
        if body:
            self.assert_found(body, self.model.stored[customer, header_key], customer)
        id_ = self.an_id(self.model.orders)
        for rpc in ("GetOrder", "GetBulkOrder"):
            body, _ = self.send(rpc, id=id_)
            if body:
                rows = body["data"] if rpc == "GetOrder" else body["data"]["assigned_numbers"]
                assert list(map(without_times, rows)) == self.model.orders[id_].rows

    def assert_found(self, body, stored, customer):
        """The order under a key has its rows. From now on its id is known."""
        is_bulk = stored.rpc == "BulkOrderNumbers"
        rows = stored.body["data"]["assigned_numbers"] if is_bulk else stored.body["data"]
        assert list(map(without_times, body["data"])) == list(map(without_times, rows))
        self.model.know_order(customer, body["meta"]["order_id"], rows, is_bulk=is_bulk)

    # ---------------------------------------------------------------- searches and holds

    def search(self):
        quantity = self.random.randint(1, 12)
        body, _ = self.send("SearchNumbers", quantity=quantity, **self.criteria())
        if body:
            found = {row["number"] for row in body["data"]}
            assert len(found) == len(body["data"]) == min(quantity, len(self.model.free))
            assert found <= self.model.free

    def hold(self):
        numbers = self.some_numbers()
        body, customer = self.send("HoldNumbers", numbers=numbers, minutes=30)
        if body:
            assert body["data"]["numbers"] == numbers
            self.model.hold(customer, body["data"]["id"], numbers)

    def look_at_hold(self):
        id_ = self.an_id(self.model.holds)
        body, _ = self.send("GetHold", id=id_)
        if body:
            assert body["data"]["numbers"] == self.model.kept(id_)

    def end_hold(self):
        id_ = self.an_id(self.model.holds)
        body, _ = self.send("ReleaseHold", id=id_)
        if body:
            assert body["data"] == {"status": "released", "numbers": self.model.kept(id_)}
            self.model.end_hold(id_)

    # ---------------------------------------------------------------- numbers of an organization

    def list_numbers(self):
        """Page by page, with one key."""
        limit, cursor, rows = self.random.randint(1, 5), {}, []
        call, key = self.random.choice(self.calls), self.key_for({})
        while True:
            body, customer = self.sent_by(call, "ListNumbers", key, None, {"limit": limit, **cursor})
            if not body:
                return
            rows += body["data"]
            if body["meta"]["next_cursor"] is None:
                break
            assert len(body["data"]) == limit
            cursor = {"cursor": body["meta"]["next_cursor"]}
        assert list(map(without_times, rows)) == [each.row for each in self.model.owned(customer)]

    def look_at_number(self):
        self.change("GetNumber", {})

    def update(self):
        removed = self.random.choice([None, "inbound_url", "label"])
        self.change("UpdateNumber", self.routing() | ({removed: ""} if removed else {}))

    def attach(self):
        self.change("AttachCampaign", {"campaign_id": self.random.choice(list(self.model.campaigns))})

    def detach(self):
        self.change("DetachCampaign", {}, {"campaign_id": ""})

    def change(self, rpc, request, changes=None):
        id_ = self.an_id(self.model.assignments)
        body, _ = self.send(rpc, id=id_, **request)
        if body:
            self.model.route(id_, request if changes is None else changes)
            assert without_times(body["data"]) == self.model.assignments[id_].row

    def release(self):
        id_ = self.an_id(self.model.assignments)
        body, _ = self.send("ReleaseNumber", id=id_)
        if body:
            assert body["data"]["status"] == "released"
            self.model.release(id_)

    def bulk_release(self):
        ids = [self.an_id(self.model.assignments) for _ in range(self.random.randint(1, 4))]
        body, customer = self.send("BulkReleaseNumbers", ids=ids)
        if body:
            assert body["data"] == self.model.buckets(customer, ids)
            for id_ in body["data"]["released"]:
                self.model.release(id_)

    def send_again(self):
        """An earlier call that used up its idempotency key."""
        again = [each for each in self.sent if self.model.stored_for(each[0], *each[2:], each[1].customer)]
        if again:
            body, _ = self.sent_by(self.random.choice(self.calls), *self.random.choice(again))
            assert body is None

    # ---------------------------------------------------------------- operators and time

    def new_key(self):
        customer, scopes = self.random.randrange(2), self.random.choice([(READ,), (WRITE,), (READ, WRITE)])
        self.keys.append(Key(customer, self.customers[customer].new_key(*scopes), scopes))

    def revoke(self):
        """The first keys of both customers stay, so that most calls succeed."""
        keys = [key for key in self.keys[2:] if key.text not in self.model.revoked]
        if keys:
            key = self.random.choice(keys)
            self.customers[key.customer].revoke_text(key.text)
            self.model.revoked.add(key.text)

    def add_credit(self):
        customer, credits = self.random.randrange(2), self.random.randint(1, 5)
        self.customers[customer].credit(credits * PRICE)
        self.model.credit[customer] += credits

    def new_campaign(self):
        customer = self.random.randrange(2)
        state = self.random.choice([("ACTIVE", "VERIFIED"), ("ACTIVE", "VERIFIED"), *CAMPAIGN_RULES])
        self.model.campaigns[str(self.customers[customer].campaign(*state))] = (customer, state)

    def import_more(self):
        number = next(self.unused)
        rows = ["number,number_type,sms_enabled,mms_enabled,price", f"{number},local,true,false,1.00"]
        assert import_csv(self.engine, rows).added == 1
        self.model.numbers[number] = Number()

    def time_passes(self):
        duration = self.random.choice([{"minutes": 31}, {"days": 31}])
        for customer in self.customers:
            let_time_pass(customer, **duration)
        if "days" in duration:
            self.model.rests_end()
        else:
            self.model.holds_expire()

    def the_database_agrees(self):
        for index, customer in enumerate(self.customers):
            assert customer.owned() == {each.row["number"] for each in self.model.owned(index)}
            assert customer.balance_micros() == self.model.credit[index] * PRICE


def routing_of(row):
    return {name: row[name] for name in ROUTING if name in row}


def test_the_service_does_what_the_model_says(service, times):
    codes = Counter()
    with (
        httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client,
        grpc.insecure_channel(service.grpc_targets[0]) as first,
        grpc.insecure_channel(service.grpc_targets[1]) as second,
    ):
        for _ in range(times(6, 400)):
            seed = random.randrange(2**32)
            print(f"seed {seed}")
            walk = Walk(service, (Rest(client), Grpc(first), Grpc(second)), seed)
            walk.go(100)
            codes += walk.codes
    print(sorted(codes.items()))
    assert len({rpc for rpc, code in codes if code == "OK"}) >= len(RPCS) - times(3, 0)
