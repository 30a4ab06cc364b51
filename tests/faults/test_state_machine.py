"""Orders, retries, revocations, credit, campaigns and imports in a random sequence: the service against a model."""

import itertools
import os

import grpc
import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from server.store.inventory import import_csv
from tests.support.callers import TIMEOUT_SECONDS, Grpc, Rest
from tests.support.customer import Customer

PRICE = 1_000_000
# Each pytest worker imports numbers from a range of its own.
IMPORTED_FIRST = 2_125_550_000 + 20_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_imported = itertools.count(IMPORTED_FIRST)
CAMPAIGN_RULES = {
    ("PENDING", "VERIFIED"): "must be ACTIVE",
    ("ACTIVE", "UNVERIFIED"): "brand must be VERIFIED or VETTED_VERIFIED",
}


class OrderMachine(RuleBasedStateMachine):
    """The model: owners of numbers, credit, valid keys, campaigns, and the responses of idempotency keys."""

    service = None
    calls = ()

    @initialize(credit=st.integers(0, 12))
    def open(self, credit):
        engine = self.service.database.engine
        self.customers = [
            Customer.open(engine, credit_micros=credit * PRICE),
            Customer.open(engine, credit_micros=5 * PRICE),
        ]
        self.credit = [credit, 5]
        self.numbers = self.customers[0].numbers(8)
        self.owner = {}
        self.keys = [(0, self.customers[0].key, True), (1, self.customers[1].key, True)]
        self.revoked = set()
        self.campaigns = [(None, None)]
        self.responses = {}
        self.sent = []

    # ---------------------------------------------------------------- steps

    @rule(data=st.data())
    def order(self, data):
        numbers = data.draw(
            st.lists(st.sampled_from([*self.numbers, "+19999999999"]), min_size=1, max_size=4, unique=True)
        )
        request = {"numbers": numbers}
        if label := data.draw(st.sampled_from([None, "a", "b"])):
            request["label"] = label
        campaign = data.draw(st.sampled_from(self.campaigns))
        if campaign[0]:
            request["campaign_id"] = campaign[0]
        key = data.draw(st.sampled_from(self.keys))
        idempotency_key = data.draw(st.sampled_from([None, "x", "y", "z"]))
        self._send(data.draw(st.sampled_from(self.calls)), key, idempotency_key, request, campaign)

    @rule(data=st.data())
    def send_again(self, data):
        if self.sent:
            self._send(data.draw(st.sampled_from(self.calls)), *data.draw(st.sampled_from(self.sent)))

    @rule(customer=st.sampled_from([0, 1]), scoped=st.booleans())
    def new_key(self, customer, scoped):
        key = self.customers[customer].new_key("numbers:write" if scoped else "numbers:read")
        self.keys.append((customer, key, scoped))

    @rule(data=st.data())
    def revoke(self, data):
        customer, key, _ = data.draw(st.sampled_from(self.keys))
        if key not in self.revoked:
            self.customers[customer].revoke_text(key)
            self.revoked.add(key)

    @rule(customer=st.sampled_from([0, 1]), credits=st.integers(1, 5))
    def add_credit(self, customer, credits):
        self.customers[customer].credit(credits * PRICE)
        self.credit[customer] += credits

    @rule(customer=st.sampled_from([0, 1]), state=st.sampled_from([("ACTIVE", "VERIFIED"), *CAMPAIGN_RULES]))
    def new_campaign(self, customer, state):
        self.campaigns.append((str(self.customers[customer].campaign(*state)), (customer, state)))

    @rule()
    def import_more(self):
        number = f"+1{next(_imported)}"
        rows = ["number,number_type,sms_enabled,mms_enabled,price", f"{number},local,true,false,1.00"]
        assert import_csv(self.service.database.engine, rows).added == 1
        self.numbers.append(number)

    # ---------------------------------------------------------------- what must follow

    def _send(self, call, key, idempotency_key, request, campaign):
        expected = self._expected(key, idempotency_key, request, campaign[1])
        response = call(key[1], idempotency_key=idempotency_key, **request)
        self.sent.append((key, idempotency_key, request, campaign))
        code = "OK" if response.status == 200 else response.body["error"]["code"]
        # Keys are cached for some seconds. A key that was revoked since may still get FORBIDDEN, if it has no scope.
        assert code == expected or (code, expected, key[2]) == ("FORBIDDEN", "UNAUTHORIZED", False), response
        if code == "INSUFFICIENT_INVENTORY":
            gone = [number for number in request["numbers"] if not self._is_free(number)]
            available = len(request["numbers"]) - len(gone)
            assert response.body["data"] == {"available_count": available, "unavailable": gone}
        if code != "OK":
            return
        replay_key = (key[0], idempotency_key)
        replayed = idempotency_key is not None and replay_key in self.responses
        assert response.headers.get("idempotency-replayed") == ("true" if replayed else None)
        if replayed:
            assert response.body == self.responses[replay_key][1]
            return
        self.owner |= dict.fromkeys(request["numbers"], key[0])
        self.credit[key[0]] -= len(request["numbers"])
        if idempotency_key is not None:
            self.responses[replay_key] = (request, response.body)

    def _expected(self, key, idempotency_key, request, campaign):
        customer, text, scoped = key
        if text in self.revoked:
            return "UNAUTHORIZED"
        if not scoped:
            return "FORBIDDEN"
        if idempotency_key is not None and (customer, idempotency_key) in self.responses:
            return "OK" if self.responses[customer, idempotency_key][0] == request else "IDEMPOTENCY_KEY_REUSED"
        if campaign and campaign[0] != customer:
            return "NOT_FOUND"
        if campaign and campaign[1] in CAMPAIGN_RULES:
            return "VALIDATION_FAILED"
        if not all(map(self._is_free, request["numbers"])):
            return "INSUFFICIENT_INVENTORY"
        return "OK" if self.credit[customer] >= len(request["numbers"]) else "INSUFFICIENT_CREDIT"

    def _is_free(self, number):
        return number in self.numbers and number not in self.owner

    @invariant()
    def the_database_agrees(self):
        for index, customer in enumerate(self.customers):
            assert customer.owned() == {number for number, owner in self.owner.items() if owner == index}
            assert customer.balance_micros() == self.credit[index] * PRICE


def test_the_service_does_what_the_model_says(service, times):
    with (
        httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client,
        grpc.insecure_channel(service.grpc_targets[0]) as first,
        grpc.insecure_channel(service.grpc_targets[1]) as second,
    ):
        live = {"service": service, "calls": (Rest(client), Grpc(first), Grpc(second))}
        # Hypothesis makes the machine itself and passes no arguments.
        machine = type("LiveOrderMachine", (OrderMachine,), live)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=times(15, 500),
                stateful_step_count=30,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
