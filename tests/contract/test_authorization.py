"""Which key may call which method: every method with every kind of key, over every transport."""

import pytest

from server.rpc.auth import required_scope
from server.rpc.server import SERVICE
from server.scopes import SCOPES
from tests.support.inventory import all_rows, assert_not_found, assert_refused, assert_success, new_area_code, stock

METHODS = [method.name for method in SERVICE.methods]
# The scope of each method, as the contract says.
READS = {"GetBulkOrder", "GetOrder", "FindOrder", "GetHold", "ListNumbers", "GetNumber"}
UNKNOWN_ID = "0190b0a0-0000-7000-8000-000000000001"
UNAUTHORIZED = (401, "UNAUTHORIZED", "authentication failed")
FORBIDDEN = (403, "FORBIDDEN", "missing required scope")

# How to make a key that every method refuses, and how it refuses it.
BAD_KEYS = {
    "no key": (lambda customer, _: None, UNAUTHORIZED),
    "malformed": (lambda customer, _: "am_live_" + "0" * 44, UNAUTHORIZED),
    "unknown": (lambda customer, _: customer.unknown_key(), UNAUTHORIZED),
    "expired": (lambda customer, _: customer.expired_key(), UNAUTHORIZED),
    "revoked": (lambda customer, _: customer.revoked_key(), UNAUTHORIZED),
    "wrong scope": (lambda customer, scope: customer.new_key(*(s for s in SCOPES if s != scope)), FORBIDDEN),
    "another scheme": (lambda customer, _: f"Basic {customer.key}", UNAUTHORIZED),
    "one character too many": (lambda customer, _: f"{customer.key}0", UNAUTHORIZED),
    "another case": (lambda customer, _: customer.key.swapcase(), UNAUTHORIZED),
    "revoked, wrong scope": (lambda customer, scope: customer.revoked_key(*{*SCOPES} - {scope}), UNAUTHORIZED),
}
SHORT = ("no key", "revoked", "wrong scope")
"""The kinds that a short run tries over gRPC."""


class Things:
    """What a request may name: things of one organization, made when they are needed."""

    def __init__(self, call, customer):
        self.call, self.customer = call, customer

    def number(self):
        """The id of a number that it has."""
        request = {"numbers": self.customer.numbers(1), "campaign_id": self.campaign()}
        return self.call(self.customer.key, **request).body["data"][0]["id"]

    def order_key(self):
        key = f"key-of-{self.customer.numbers(1)[0]}"
        assert self.call(self.customer.key, numbers=self.customer.numbers(1), idempotency_key=key).status == 200
        return key

    def order(self):
        found = self.call.rpc("FindOrder", self.customer.key, idempotency_key=self.order_key())
        return found.body["meta"]["order_id"]

    def area(self):
        """An area code with two numbers."""
        area = new_area_code()
        stock(self.customer, area, 2)
        return area

    def bulk_order(self):
        response = self.call.rpc("BulkOrderNumbers", self.customer.key, quantity=1, area_code=self.area())
        return response.body["data"]["order_id"]

    def hold(self):
        response = self.call.rpc("HoldNumbers", self.customer.key, numbers=self.customer.numbers(1))
        return response.body["data"]["id"]

    def campaign(self):
        return str(self.customer.campaign())


def valid_request(method, things):
    """A valid request. The tests of a new method fail until it has one here."""
    customer = things.customer
    requests = {
        "SearchNumbers": lambda: {"area_code": things.area()},
        "OrderNumbers": lambda: {"numbers": customer.numbers(1), "campaign_id": things.campaign()},
        "BulkOrderNumbers": lambda: {"quantity": 1, "area_code": things.area(), "campaign_id": things.campaign()},
        "GetBulkOrder": lambda: {"id": things.bulk_order()},
        "GetOrder": lambda: {"id": things.order()},
        "FindOrder": lambda: {"idempotency_key": things.order_key()},
        "HoldNumbers": lambda: {"numbers": customer.numbers(1)},
        "GetHold": lambda: {"id": things.hold()},
        "ReleaseHold": lambda: {"id": things.hold()},
        "ListNumbers": dict,
        "GetNumber": lambda: {"id": things.number()},
        "UpdateNumber": lambda: {"id": things.number(), "label": "x", "campaign_id": things.campaign()},
        "AttachCampaign": lambda: {"id": things.number(), "campaign_id": things.campaign()},
        "DetachCampaign": lambda: {"id": things.number()},
        "ReleaseNumber": lambda: {"id": things.number()},
        "BulkReleaseNumbers": lambda: {"ids": [things.number()]},
    }
    return requests[method]()


@pytest.fixture
def things(rest, customer):
    return Things(rest, customer)


@pytest.fixture
def kinds(call, rest, times):
    """The kinds of keys to try over this transport."""
    return BAD_KEYS if call is rest else times(SHORT, BAD_KEYS)


each_method = pytest.mark.parametrize("method", METHODS)


def test_each_method_needs_the_scope_of_the_contract():
    for method in METHODS:
        scope = "numbers:read" if method in READS else "numbers:write"
        assert required_scope(SERVICE.methods_by_name[method]) == scope


@each_method
def test_a_method_needs_a_valid_key_with_its_scope(call, customer, things, kinds, method):
    request = valid_request(method, things)
    scope = required_scope(SERVICE.methods_by_name[method])
    before = all_rows(customer)
    for kind in kinds:
        make_key, refusal = BAD_KEYS[kind]
        key = make_key(customer, scope)
        assert_refused(call.rpc(method, key, **request), *refusal)
        # The key comes before every other fault.
        assert_refused(call.rpc(method, key, header_key="a b", **malformed(request)), *refusal)
    assert all_rows(customer) == before
    for key in (customer.new_key(scope), customer.key):
        assert call.rpc(method, key, **valid_request(method, things)).status == 200


def malformed(request):
    """The request with values that break the rules of its fields."""
    wrong = {str: "x", list: ["x"], int: 4_000_000_000}
    return {name: wrong[type(value)] for name, value in request.items()}


@each_method
def test_a_revoked_key_is_refused_even_if_it_was_just_used(call, customer, things, method):
    """Its look-up is cached from here on. Each method reads the key again."""
    scope = required_scope(SERVICE.methods_by_name[method])
    key = customer.new_key(scope)
    assert call.rpc(method, key, **valid_request(method, things)).status == 200
    requests = [valid_request(method, things) for _ in range(2)]
    customer.revoke_text(key)
    before = all_rows(customer)
    for request in requests * 3:
        assert_refused(call.rpc(method, key, **request), *UNAUTHORIZED)
    assert all_rows(customer) == before


# ---------------------------------------------------------------- another organization

NAMED = {
    "OrderNumbers": "campaign_id",
    "BulkOrderNumbers": "campaign_id",
    "GetBulkOrder": "id",
    "GetOrder": "id",
    "FindOrder": "idempotency_key",
    "GetHold": "id",
    "ReleaseHold": "id",
    "GetNumber": "id",
    "UpdateNumber": "id",
    "AttachCampaign": "id",
    "DetachCampaign": "id",
    "ReleaseNumber": "id",
}
"""The field of each method that names a thing of one organization."""


@pytest.mark.parametrize("method", NAMED)
def test_a_thing_of_another_organization_looks_like_an_unknown_one(call, customer, other_customer, things, method):
    request = valid_request(method, things)
    unknown = request | {NAMED[method]: UNKNOWN_ID}
    before = all_rows(customer), all_rows(other_customer)
    for each in (request, unknown):
        assert_not_found(call.rpc(method, other_customer.key, **each))
    assert (all_rows(customer), all_rows(other_customer)) == before
    assert call.rpc(method, customer.key, **request).status == 200


@pytest.mark.parametrize("method", ["UpdateNumber", "AttachCampaign"])
def test_a_number_does_not_join_a_campaign_of_another_organization(call, other_customer, rest, things, method):
    request = valid_request(method, things)
    number = Things(rest, other_customer).number()
    before = all_rows(other_customer)
    assert_not_found(call.rpc(method, other_customer.key, **request | {"id": number}))
    assert all_rows(other_customer) == before


def test_lists_and_bulk_releases_have_nothing_of_another_organization(call, customer, other_customer, things):
    id_ = things.number()
    before = all_rows(customer)
    meta = {"limit": 20, "next_cursor": None}
    assert_success(call.rpc("ListNumbers", other_customer.key), [], meta=meta)
    response = call.rpc("BulkReleaseNumbers", other_customer.key, ids=[id_, UNKNOWN_ID])
    assert_success(response, {"released": [], "already_released": [], "unknown": [id_, UNKNOWN_ID]})
    assert all_rows(customer) == before


def test_every_method_is_tested_with_another_organization():
    """A search has nothing of an organization, and a hold names only numbers."""
    assert {*NAMED, "SearchNumbers", "HoldNumbers", "ListNumbers", "BulkReleaseNumbers"} == {*METHODS}


# ---------------------------------------------------------------- what may change at any moment


def test_a_revoked_key_places_no_order_even_if_it_was_just_used(call, customer):
    # Its look-up is cached from here on. The order's own transaction reads the key again.
    assert call(customer.key, numbers=customer.numbers(1)).status == 200
    customer.revoke()
    owned = customer.owned()
    for validate_only in (False, True) * 10:
        assert call(customer.key, numbers=customer.numbers(1), validate_only=validate_only).status == 401
    assert customer.owned() == owned


def test_an_expired_campaign_is_refused_even_if_it_was_just_used(call, customer):
    campaign_id = str(customer.campaign())
    assert call(customer.key, numbers=customer.numbers(1), campaign_id=campaign_id).status == 200
    customer.set_campaign(campaign_id, "EXPIRED")
    assert call(customer.key, numbers=customer.numbers(1), campaign_id=campaign_id).status == 422
