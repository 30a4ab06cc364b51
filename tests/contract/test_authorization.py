"""Which key may call which method: every method with every kind of key, over every transport."""

import pytest

from server.rpc.auth import required_scope
from server.rpc.server import SERVICE
from server.scopes import SCOPES

METHODS = [method.name for method in SERVICE.methods]

# How to make a key, and the status of a valid request with it.
KEYS = {
    "no key": (lambda customer, _: None, 401),
    "malformed": (lambda customer, _: "am_live_" + "0" * 44, 401),
    "another scheme": (lambda customer, _: f"Basic {customer.key}", 401),
    "unknown": (lambda customer, _: customer.unknown_key(), 401),
    "expired": (lambda customer, _: customer.expired_key(), 401),
    "revoked": (lambda customer, _: customer.revoked_key(), 401),
    "wrong scope": (lambda customer, scope: customer.new_key(*(s for s in SCOPES if s != scope)), 403),
    "only the scope": (lambda customer, scope: customer.new_key(scope), 200),
    "good": (lambda customer, _: customer.key, 200),
}


def valid_request(method, customer):
    """A valid request. The tests of a new method fail until it has one here."""
    return {"OrderNumbers": lambda: {"numbers": customer.numbers(1), "campaign_id": str(customer.campaign())}}[method]()


def request_for_another_organization(method, customer, other_customer):
    """A request that names something of another organization."""
    requests = {
        "OrderNumbers": lambda: {"numbers": customer.numbers(1), "campaign_id": str(other_customer.campaign())},
    }
    return requests[method]()


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_needs_a_valid_key_with_its_scope(call, customer, method, kind):
    make_key, status = KEYS[kind]
    scope = required_scope(SERVICE.methods_by_name[method])
    assert call(make_key(customer, scope), **valid_request(method, customer)).status == status


@pytest.mark.parametrize("method", METHODS)
def test_an_id_of_another_organization_is_not_found(call, customer, other_customer, method):
    assert call(customer.key, **request_for_another_organization(method, customer, other_customer)).status == 404


def test_a_revoked_key_places_no_order_even_if_it_was_just_used(call, customer):
    # Its look-up is cached from here on. The order's own transaction reads the key again.
    assert call(customer.key, numbers=customer.numbers(1)).status == 200
    customer.revoke()
    owned = customer.owned()
    for _ in range(20):
        assert call(customer.key, numbers=customer.numbers(1)).status == 401
    assert customer.owned() == owned


def test_an_expired_campaign_is_refused_even_if_it_was_just_used(call, customer):
    campaign_id = str(customer.campaign())
    assert call(customer.key, numbers=customer.numbers(1), campaign_id=campaign_id).status == 200
    customer.set_campaign(campaign_id, "EXPIRED")
    assert call(customer.key, numbers=customer.numbers(1), campaign_id=campaign_id).status == 422
