"""The services that ours is compared with sell: peer.py, and Envoy without our Lua."""

import httpx
import pytest

from tests.bench.connections import ROUTE
from tests.bench.parts import running_bare_edge, running_peer
from tests.support.customer import Customer


@pytest.fixture(scope="module")
def peer(service, tmp_path_factory):
    with running_peer(tmp_path_factory.mktemp("bench") / "peer", service.database.url, workers=1) as peer:
        yield peer


@pytest.fixture(scope="module")
def bare_edge(service, tmp_path_factory):
    with running_bare_edge(tmp_path_factory.mktemp("bench") / "edge", service.settings) as edge:
        yield edge


@pytest.fixture
def customer(service):
    return Customer.open(service.database.engine)


def order(server, key, numbers, **fields):
    host, port = server.address
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"http://{host}:{port}{ROUTE}", headers=headers, json={"numbers": numbers, **fields}, timeout=30)


def test_the_peer_sells_numbers(peer, customer):
    numbers, campaign = customer.numbers(3), str(customer.campaign())
    routing = {"inbound_url": "https://example.com/in", "label": "A label", "campaign_id": campaign}
    response = order(peer, customer.key, numbers, **routing)
    assert response.status_code == 200, response.text
    rows = response.json()["data"]
    assert [row["number"] for row in rows] == numbers
    assert all(row.items() >= routing.items() for row in rows)
    assert customer.owned() == set(numbers)
    assert customer.label_of(numbers[0]) == "A label"


def test_the_peer_sells_a_number_once(peer, customer):
    sold, free = customer.numbers(2)
    assert order(peer, customer.key, [sold]).status_code == 200
    response = order(peer, customer.key, [free, sold])
    assert (response.status_code, response.json()["error"]["code"]) == (409, "INSUFFICIENT_INVENTORY")
    assert response.json()["data"] == {"available_count": 1, "unavailable": [sold]}
    assert customer.owned() == {sold}


def test_the_peer_sells_no_number_that_rests(peer, customer):
    assert order(peer, customer.key, customer.quarantined_numbers(1)).status_code == 409


def test_the_peer_sells_nothing_without_credit(peer, customer):
    response = order(peer, customer.poor().key, customer.numbers(1))
    assert (response.status_code, response.json()["error"]["code"]) == (402, "INSUFFICIENT_CREDIT")


@pytest.mark.parametrize("kind", ["unknown", "expired", "revoked"])
def test_the_peer_refuses_a_key_that_is_not_valid(peer, customer, kind):
    key = getattr(customer, f"{kind}_key")()
    assert order(peer, key, customer.numbers(1)).status_code == 401


def test_the_peer_refuses_a_key_without_the_scope(peer, customer):
    assert order(peer, customer.new_key("numbers:read"), customer.numbers(1)).status_code == 403


@pytest.mark.parametrize(
    ("numbers", "fields"),
    [
        ([], {}),
        (["12000000000"], {}),
        (["+12000000000"] * 2, {}),
        (["+12000000000"], {"inbound_url": "http://example.com"}),
        (["+12000000000"], {"unknown": 1}),
    ],
)
def test_the_peer_refuses_fields_that_break_their_rules(peer, customer, numbers, fields):
    response = order(peer, customer.key, numbers, **fields)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "VALIDATION_FAILED")


@pytest.mark.parametrize(
    ("status", "identity_status"), [("PENDING", "VERIFIED"), ("ACTIVE", "UNVERIFIED"), ("ACTIVE", None)]
)
def test_the_peer_refuses_a_campaign_that_may_not_be_used(peer, customer, status, identity_status):
    campaign = str(customer.campaign(status, identity_status))
    assert order(peer, customer.key, customer.numbers(1), campaign_id=campaign).status_code == 422


def test_the_peer_does_not_find_a_campaign_of_another_organization(peer, customer):
    campaign = str(customer.poor().campaign())
    assert order(peer, customer.key, customer.numbers(1), campaign_id=campaign).status_code == 404


def test_the_edge_without_our_lua_sells_numbers(bare_edge, customer):
    numbers = customer.numbers(2)
    response = order(bare_edge, customer.key, numbers)
    assert response.status_code == 200, response.text
    assert [row["number"] for row in response.json()["data"]] == numbers
    assert customer.owned() == set(numbers)


def test_the_edge_without_our_lua_sends_errors_in_the_form_of_envoy(bare_edge, customer):
    response = order(bare_edge, customer.key, ["malformed"])
    assert set(response.json()) == {"code", "message", "details"}
