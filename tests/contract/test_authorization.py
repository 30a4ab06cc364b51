"""Who may call what: every method of the contract with every kind of key, over every transport."""

import pytest

from server.keys import SCOPES
from server.rpc.auth import required_scope
from server.rpc.server import SERVICE

METHODS = [method.name for method in SERVICE.methods]

# A key of the shop, or the lack of one, and the answer it gets. "good" is what each method says to a good request.
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


def good_request(method, customer):
    """A request that succeeds. A method without one here fails its row of the matrix."""
    return {"OrderNumbers": lambda: {"numbers": customer.numbers(1), "campaign_id": str(customer.campaign())}}[method]()


def anothers_request(method, customer, other_customer):
    """A request that names something of another organization, and so is told NOT_FOUND."""
    return {"OrderNumbers": lambda: {"numbers": customer.numbers(1), "campaign_id": str(other_customer.campaign())}}[
        method
    ]()


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("method", METHODS)
def test_a_key_opens_what_it_is_for_and_nothing_else(call, customer, method, kind):
    make_key, status = KEYS[kind]
    scope = required_scope(SERVICE.methods_by_name[method])
    assert call(make_key(customer, scope), **good_request(method, customer)).status == status


@pytest.mark.parametrize("method", METHODS)
def test_what_another_organization_has_does_not_exist(call, customer, other_customer, method):
    assert call(customer.key, **anothers_request(method, customer, other_customer)).status == 404


def test_a_key_that_just_worked_never_sells_after_its_revocation(call, customer):
    """The look-up of a key is remembered; the sale itself reads it again."""
    assert call(customer.key, numbers=customer.numbers(1)).status == 200
    customer.revoke()
    owned = customer.owned()
    for _ in range(20):
        assert call(customer.key, numbers=customer.numbers(1)).status == 401
    assert customer.owned() == owned


def test_a_brand_or_campaign_that_just_worked_is_read_again(call, customer):
    campaign_id = str(customer.campaign())
    assert call(customer.key, numbers=customer.numbers(1), campaign_id=campaign_id).status == 200
    customer.set_campaign(campaign_id, "EXPIRED")
    assert call(customer.key, numbers=customer.numbers(1), campaign_id=campaign_id).status == 422
