"""Idempotency keys, over each transport: an order may be sent again without fear."""

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


def test_the_same_again_is_the_same_answer_and_no_new_order(call, customer, key):
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


def test_without_a_key_nothing_is_remembered(call, customer):
    numbers = customer.numbers(1)
    assert call(customer.key, numbers=numbers).status == 200
    again = call(customer.key, numbers=numbers)
    assert again.body["error"]["code"] == "INSUFFICIENT_INVENTORY"
    assert "idempotency-replayed" not in again.headers


def test_rest_and_grpc_share_their_keys_byte_for_byte(rest, grpc_direct_call, grpc_edge_call, customer, key):
    order = {"numbers": customer.numbers(2), "label": "é", "idempotency_key": key}
    answers = [call(customer.key, **order) for call in (grpc_direct_call, rest, grpc_edge_call, rest)]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true", "true"]
    assert answers[1].raw == answers[3].raw
    assert answers[0].raw == answers[2].raw
    assert sold_once(customer, order["numbers"])


def test_every_server_knows_the_key(service, customer, key):
    numbers = customer.numbers(1)
    answers = []
    for target in service.grpc_targets:
        with grpc.insecure_channel(target) as channel:
            answers.append(Grpc(channel)(customer.key, numbers=numbers, idempotency_key=key))
    assert len(answers) > 1
    assert {answer.raw for answer in answers} == {answers[0].raw}
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
    answer = call(customer.key, **others[change], idempotency_key=key)
    message = "idempotency key was used for another order"
    assert (answer.status, answer.body) == (422, failure("IDEMPOTENCY_KEY_REUSED", message, answer.request_id))
    assert customer.everything() == before


def test_one_campaign_however_its_id_is_written_is_the_same_order(call, customer, key):
    campaign = str(customer.campaign())
    order = {"numbers": customer.numbers(1), "idempotency_key": key}
    first = call(customer.key, **order, campaign_id=campaign.upper())
    again = call(customer.key, **order, campaign_id=campaign.lower())
    assert (first.status, first.body) == (again.status, again.body)
    assert again.headers["idempotency-replayed"] == "true"


def test_a_key_belongs_to_its_organization(call, customer, other_customer, key):
    assert call(customer.key, numbers=customer.numbers(1), idempotency_key=key).status == 200
    answer = call(other_customer.key, numbers=other_customer.numbers(1), idempotency_key=key)
    assert answer.status == 200
    assert "idempotency-replayed" not in answer.headers


def test_another_key_of_the_organization_gets_the_same_answer(call, customer, key):
    order = {"numbers": customer.numbers(1), "idempotency_key": key}
    first = call(customer.key, **order)
    again = call(customer.new_key("numbers:write"), **order)
    assert first.body == again.body
    assert again.headers["idempotency-replayed"] == "true"


def test_a_replay_needs_the_key_to_be_valid_and_in_scope_now(call, customer, key):
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


def test_after_a_refusal_the_same_may_be_tried_again(call, customer, key):
    (number,) = customer.numbers(1)
    poor = customer.poor()
    refused = call(poor.key, numbers=[number], idempotency_key=key)
    assert refused.body["error"]["code"] == "INSUFFICIENT_CREDIT"
    poor.credit(1_000_000)
    answer = call(poor.key, numbers=[number], idempotency_key=key)
    assert answer.status == 200
    assert "idempotency-replayed" not in answer.headers


@pytest.mark.parametrize("shape", ["x", "x" * 255, "!~", 'a"b', "a\\b", "{,}", "é".encode().hex(), "null", "NULL"])
def test_any_visible_ascii_is_a_key(call, customer, shape):
    order = {"numbers": customer.numbers(1), "idempotency_key": shape}
    assert call(customer.key, **order).status == 200
    assert call(customer.key, **order).headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(("quoted", "bare"), [('"abc"', "abc"), ('"a\\"b\\\\c"', 'a"b\\c')])
def test_quoted_or_bare_it_is_the_same_key(call, customer, quoted, bare):
    numbers = customer.numbers(1)
    assert call(customer.key, numbers=numbers, idempotency_key=quoted).status == 200
    assert call(customer.key, numbers=numbers, idempotency_key=bare).headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("bad", ["x" * 256, '"', '""', '"a', '"a"b', "a b", '"a b"', '"a\\x"', "", [b"a", b"b"]])
def test_a_malformed_key_is_told(call, customer, bad):
    before = customer.everything()
    answer = call(customer.key, numbers=customer.numbers(1), idempotency_key=bad)
    assert (answer.status, answer.body) == (
        422,
        failure("VALIDATION_FAILED", "validation failed", answer.request_id, details=RULE),
    )
    assert customer.everything() == before


def test_a_key_that_is_not_ascii_is_no_proper_header(rest, customer):
    answer = rest(customer.key, numbers=customer.numbers(1), idempotency_key=["é".encode()])
    assert (answer.status, answer.body["error"]["code"]) == (400, "INVALID_INPUT")


def test_a_malformed_key_is_told_with_all_other_faults(call, customer):
    answer = call(customer.key, numbers=[], label="", idempotency_key="a b")
    details = {"label": "must be 1..255 chars", "numbers": "must be 1..100 numbers", **RULE}
    assert answer.body["error"]["details"] == details


def test_an_order_of_a_hundred_numbers_is_replayed_whole(call, customer, key):
    order = {"numbers": customer.numbers(100), "label": "x" * 255, "idempotency_key": key}
    first, again = call(customer.key, **order), call(customer.key, **order)
    assert first.status == 200
    assert first.raw == again.raw


def test_while_another_server_is_at_work_under_the_key_it_is_in_progress(call, customer, key):
    """Until its caller's time is up; then it says when to come again."""
    order = {"numbers": customer.numbers(1), "idempotency_key": key}
    claim = text("INSERT INTO idempotency_key SELECT :id, :key, '', :id, '', clock_timestamp()")
    hasty = replace(call, timeout_seconds=2) if isinstance(call, Grpc) else call
    with customer.engine.connect() as other:
        other.execute(claim, {"id": customer.id, "key": key})
        answer = hasty(customer.key, **order)
    message = "an order with this idempotency key is under way"
    assert (answer.status, answer.body) == (409, failure("IDEMPOTENCY_IN_PROGRESS", message, answer.request_id))
    assert answer.headers["retry-after"] == "1"
    again = call(customer.key, **order)
    assert again.status == 200
    assert "idempotency-replayed" not in again.headers
