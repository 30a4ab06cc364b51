"""Idempotency keys over each transport: an order that is sent again is placed once."""

from dataclasses import replace
from uuid import uuid4

import grpc
import pytest
from sqlalchemy import text

from tests.support.callers import Grpc, failure

RULE = {"idempotency-key": "must be one of 1..255 visible ASCII characters"}


@pytest.fixture
def key():
    return str(uuid4())


def sold_once(customer, numbers):
    return customer.owned() == set(numbers) and len(customer.assignment_ids()) == len(numbers)


def test_an_order_sent_again_gets_the_same_response_and_is_placed_once(call, customer, key):
    numbers = customer.numbers(3)
    order = {"numbers": numbers, "label": "front desk", "inbound_url": "https://example.com/in"}
    first = call(customer.key, **order, idempotency_key=key)
    before = customer.everything()
    again = call(customer.key, **order, idempotency_key=key)
    assert (first.status, again.status) == (200, 200)
    assert first.body == again.body
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert first.request_id != again.request_id
    assert customer.everything() == before


def test_an_order_without_a_key_is_not_replayed(call, customer):
    numbers = customer.numbers(1)
    assert call(customer.key, numbers=numbers).status == 200
    again = call(customer.key, numbers=numbers)
    assert again.body["error"]["code"] == "INSUFFICIENT_INVENTORY"
    assert "idempotency-replayed" not in again.headers


def test_rest_and_grpc_replay_the_same_order(rest, grpc_direct_call, grpc_edge_call, customer, key):
    order = {"numbers": customer.numbers(2), "label": "é", "idempotency_key": key}
    responses = [call(customer.key, **order) for call in (grpc_direct_call, rest, grpc_edge_call, rest)]
    assert [response.headers.get("idempotency-replayed") for response in responses] == [None, "true", "true", "true"]
    assert responses[1].raw == responses[3].raw
    assert responses[0].raw == responses[2].raw
    assert sold_once(customer, order["numbers"])


def test_every_worker_replays_the_order(service, customer, key):
    numbers = customer.numbers(1)
    responses = []
    for target in service.grpc_targets:
        with grpc.insecure_channel(target) as channel:
            responses.append(Grpc(channel)(customer.key, numbers=numbers, idempotency_key=key))
    assert len(responses) > 1
    assert {response.raw for response in responses} == {responses[0].raw}
    assert sold_once(customer, numbers)


@pytest.mark.parametrize("change", ["label", "numbers", "order of numbers", "no label"])
def test_the_same_key_for_another_order_is_refused(call, customer, key, change):
    first, second, third = customer.numbers(3)
    assert call(customer.key, numbers=[first, second], label="a", idempotency_key=key).status == 200
    others = {
        "label": {"numbers": [first, second], "label": "b"},
        "numbers": {"numbers": [first, third], "label": "a"},
        "order of numbers": {"numbers": [second, first], "label": "a"},
        "no label": {"numbers": [first, second]},
    }
    before = customer.everything()
    response = call(customer.key, **others[change], idempotency_key=key)
    message = "idempotency key was used for another request"
    assert (response.status, response.body) == (422, failure("IDEMPOTENCY_KEY_REUSED", message, response.request_id))
    assert customer.everything() == before


def test_the_case_of_a_campaign_id_does_not_change_the_order(call, customer, key):
    campaign = str(customer.campaign())
    order = {"numbers": customer.numbers(1), "idempotency_key": key}
    first = call(customer.key, **order, campaign_id=campaign.upper())
    again = call(customer.key, **order, campaign_id=campaign.lower())
    assert (first.status, first.body) == (again.status, again.body)
    assert again.headers["idempotency-replayed"] == "true"


def test_two_organizations_may_use_the_same_key(call, customer, other_customer, key):
    assert call(customer.key, numbers=customer.numbers(1), idempotency_key=key).status == 200
    response = call(other_customer.key, numbers=other_customer.numbers(1), idempotency_key=key)
    assert response.status == 200
    assert "idempotency-replayed" not in response.headers


def test_another_api_key_of_the_organization_gets_the_same_response(call, customer, key):
    order = {"numbers": customer.numbers(1), "idempotency_key": key}
    first = call(customer.key, **order)
    again = call(customer.new_key("numbers:write"), **order)
    assert first.body == again.body
    assert again.headers["idempotency-replayed"] == "true"


def test_a_replay_needs_a_valid_api_key_with_the_scope(call, customer, key):
    order = {"numbers": customer.numbers(1), "idempotency_key": key}
    writer = customer.new_key("numbers:write")
    assert call(writer, **order).status == 200
    customer.revoke_text(writer)
    assert call(writer, **order).status == 401
    assert call(customer.new_key("numbers:read"), **order).status == 403
    assert call(customer.key, **order).status == 200


def test_a_replay_costs_no_credit(call, customer, key):
    order = {"numbers": customer.numbers(1, price_micros=customer.balance_micros()), "idempotency_key": key}
    assert call(customer.key, **order).status == 200
    assert customer.balance_micros() == 0
    assert call(customer.key, **order).status == 200
    assert customer.balance_micros() == 0


def test_a_refused_order_may_be_sent_again_with_the_same_key(call, customer, key):
    (number,) = customer.numbers(1)
    poor = customer.poor()
    refused = call(poor.key, numbers=[number], idempotency_key=key)
    assert refused.body["error"]["code"] == "INSUFFICIENT_CREDIT"
    poor.credit(1_000_000)
    response = call(poor.key, numbers=[number], idempotency_key=key)
    assert response.status == 200
    assert "idempotency-replayed" not in response.headers


@pytest.mark.parametrize("shape", ["x", "x" * 255, "!~", 'a"b', "a\\b", "{,}", "é".encode().hex(), "null", "NULL"])
def test_any_visible_ascii_is_a_valid_key(call, customer, shape):
    order = {"numbers": customer.numbers(1), "idempotency_key": shape}
    assert call(customer.key, **order).status == 200
    assert call(customer.key, **order).headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(("quoted", "bare"), [('"abc"', "abc"), ('"a\\"b\\\\c"', 'a"b\\c')])
def test_a_key_with_and_without_quotes_is_the_same_key(call, customer, quoted, bare):
    numbers = customer.numbers(1)
    assert call(customer.key, numbers=numbers, idempotency_key=quoted).status == 200
    assert call(customer.key, numbers=numbers, idempotency_key=bare).headers["idempotency-replayed"] == "true"


MALFORMED = {
    "too long": "x" * 256,
    "one quote": '"',
    "only quotes": '""',
    "no closing quote": '"a',
    "text after the quote": '"a"b',
    "space": "a b",
    "space in quotes": '"a b"',
    "unknown escape": '"a\\x"',
    "empty": "",
    "two headers": [b"a", b"b"],
}


@pytest.mark.parametrize("bad", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_key_is_refused(call, customer, bad):
    before = customer.everything()
    response = call(customer.key, numbers=customer.numbers(1), idempotency_key=bad)
    assert (response.status, response.body) == (
        422,
        failure("VALIDATION_FAILED", "validation failed", response.request_id, details=RULE),
    )
    assert customer.everything() == before


def test_a_key_that_is_not_ascii_is_a_malformed_request(rest, customer):
    response = rest(customer.key, numbers=customer.numbers(1), idempotency_key=["é".encode()])
    assert (response.status, response.body["error"]["code"]) == (400, "INVALID_INPUT")


def test_a_malformed_key_is_listed_with_all_other_violations(call, customer):
    response = call(customer.key, numbers=[], label="", idempotency_key="a b")
    details = {"label": "must be 1..255 chars", "numbers": "must be 1..100 numbers", **RULE}
    assert response.body["error"]["details"] == details


def test_an_order_of_a_hundred_numbers_is_replayed(call, customer, key):
    order = {"numbers": customer.numbers(100), "label": "x" * 255, "idempotency_key": key}
    first, again = call(customer.key, **order), call(customer.key, **order)
    assert first.status == 200
    assert first.raw == again.raw


def test_an_order_whose_key_another_server_holds_is_in_progress(call, customer, key):
    """The server waits until the caller's deadline, and then sends the time to try again after."""
    order = {"numbers": customer.numbers(1), "idempotency_key": key}
    insert = text("INSERT INTO idempotency_key SELECT :id, :key, '', :id, '', clock_timestamp()")
    impatient = replace(call, timeout_seconds=2) if isinstance(call, Grpc) else call
    with customer.engine.connect() as other:  # as another server does before its COMMIT
        other.execute(insert, {"id": customer.id, "key": key})
        response = impatient(customer.key, **order)
    message = "a request with this idempotency key is under way"
    assert (response.status, response.body) == (409, failure("IDEMPOTENCY_IN_PROGRESS", message, response.request_id))
    assert response.headers["retry-after"] == "1"
    again = call(customer.key, **order)
    assert again.status == 200
    assert "idempotency-replayed" not in again.headers
