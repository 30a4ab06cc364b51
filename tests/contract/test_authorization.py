"""Who may call what: every method of the contract with every kind of key, over every transport."""

import pytest

from server.keys import SCOPES
from server.rpc.auth import required_scope
from server.rpc.server import SERVICE

METHODS = [method.name for method in SERVICE.methods]

# A key of the shop, or the lack of one, and the answer it gets. "good" is what each method says to a good request.
KEYS = {
    "no key": (lambda shop, _: None, 401),
    "malformed": (lambda shop, _: "am_live_" + "0" * 44, 401),
    "another scheme": (lambda shop, _: f"Basic {shop.key}", 401),
    "unknown": (lambda shop, _: shop.unknown_key(), 401),
    "expired": (lambda shop, _: shop.expired_key(), 401),
    "revoked": (lambda shop, _: shop.revoked_key(), 401),
    "wrong scope": (lambda shop, scope: shop.new_key(*(s for s in SCOPES if s != scope)), 403),
    "only the scope": (lambda shop, scope: shop.new_key(scope), 200),
    "good": (lambda shop, _: shop.key, 200),
}


def good_request(method, shop):
    """A request that succeeds. A method without one here fails its row of the matrix."""
    return {"OrderNumbers": lambda: {"numbers": shop.numbers(1), "campaign_id": str(shop.campaign())}}[method]()


def anothers_request(method, shop, other_shop):
    """A request that names something of another organization, and so is told NOT_FOUND."""
    return {"OrderNumbers": lambda: {"numbers": shop.numbers(1), "campaign_id": str(other_shop.campaign())}}[method]()


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("method", METHODS)
def test_a_key_opens_what_it_is_for_and_nothing_else(call, shop, method, kind):
    make_key, status = KEYS[kind]
    scope = required_scope(SERVICE.methods_by_name[method])
    assert call(make_key(shop, scope), **good_request(method, shop)).status == status


@pytest.mark.parametrize("method", METHODS)
def test_what_another_organization_has_does_not_exist(call, shop, other_shop, method):
    assert call(shop.key, **anothers_request(method, shop, other_shop)).status == 404


def test_a_key_that_just_worked_never_sells_after_its_revocation(call, shop):
    """The look-up of a key is remembered; the sale itself reads it again."""
    assert call(shop.key, numbers=shop.numbers(1)).status == 200
    shop.revoke()
    owned = shop.owned()
    for _ in range(20):
        assert call(shop.key, numbers=shop.numbers(1)).status == 401
    assert shop.owned() == owned


def test_a_brand_or_campaign_that_just_worked_is_read_again(call, shop):
    campaign_id = str(shop.campaign())
    assert call(shop.key, numbers=shop.numbers(1), campaign_id=campaign_id).status == 200
    shop.set_campaign(campaign_id, "EXPIRED")
    assert call(shop.key, numbers=shop.numbers(1), campaign_id=campaign_id).status == 422
