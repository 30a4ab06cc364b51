"""BulkOrderNumbers: it chooses numbers and assigns them, all or none, by the rules of an order."""

from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from tests.support.callers import Grpc
from tests.support.inventory import (
    all_rows,
    assert_invalid,
    assert_not_found,
    assert_refused,
    assert_shortage,
    assert_success,
    inventory_row,
    let_time_pass,
    new_area_code,
    stock,
    stored_number,
    values_of,
)

FIELDS = {
    "inbound_url": "https://hooks.example.com/in?a=b",
    "status_url": "https://8.8.8.8/status",
    "label": 'Zoë said "hi" 東京 🙂 %s',
}
RULES = {
    "quantity": "must be 1..100",
    "mode": "must be atomic",
    "area_code": "must be 3 digits",
    "number_type": "must be local, toll_free or short_code",
    "pattern": "must be 1..15 digits",
    "inbound_url": "must be a public https:// URL",
    "status_url": "must be a public https:// URL",
    "campaign_id": "must be a UUID",
    "label": "must be 1..255 chars",
}


@pytest.fixture
def area():
    return new_area_code()


@pytest.fixture
def order(call, customer):
    """Order with the customer's key."""
    return lambda quantity, **request: call.rpc("BulkOrderNumbers", customer.key, quantity=quantity, **request)


def ordered(response):
    assert response.status == 200, response
    return sorted(row["number"] for row in response.body["data"]["assigned_numbers"])


def refuse_shortage(response, requested, available):
    message = f"insufficient inventory: requested {requested}, available {available}"
    data = {"available_count": available, "unavailable": []}
    assert_refused(response, 409, "INSUFFICIENT_INVENTORY", message, data=data)


# ---------------------------------------------------------------- success


def test_so_many_numbers_are_chosen_and_assigned(order, customer, area):
    numbers = stock(customer, area, 5)
    response = order(3, area_code=area)
    data = response.body["data"]
    rows = [stored_number(customer, row["id"]) for row in data["assigned_numbers"]]
    counts = {"quantity": 3, "assigned_count": 3, "pending_count": 0}
    expected = {"order_id": data["order_id"], "status": "complete", **counts, "assigned_numbers": rows}
    assert_success(response, expected)
    UUID(data["order_id"])
    assert {row["number"] for row in rows} == customer.owned() < set(numbers)
    assert len(rows) == 3


def test_every_field_is_in_the_response_and_in_the_database(order, customer, area):
    stock(customer, area, 2)
    fields = FIELDS | {"campaign_id": str(customer.campaign())}
    data = order(2, area_code=area, **fields).body["data"]
    query = """
        SELECT jsonb_build_object('inbound_url', inbound_url, 'status_url', status_url, 'label', label,
            'campaign_id', campaign_id)
        FROM assignment WHERE organization_id = :id
    """
    assert values_of(customer, query, id=customer.id) == [fields] * 2
    for row in data["assigned_numbers"]:
        assert row.items() >= fields.items()


def test_the_order_and_its_cost_are_in_the_database(order, customer, area):
    stock(customer, area, 2, price_micros=150_000)
    before = customer.balance_micros()
    data = order(2, area_code=area).body["data"]
    assert customer.balance_micros() == before - 300_000
    query = """
        SELECT jsonb_build_array(o.id, o.quantity, o.number_count, o.total_micros, o.api_key_id, l.amount_micros)
        FROM orders o JOIN ledger_entry l ON l.order_id = o.id WHERE o.organization_id = :id
    """
    expected = [data["order_id"], 2, 2, 300_000, str(customer.key_id), -300_000]
    assert values_of(customer, query, id=customer.id) == [expected]


@pytest.mark.parametrize("quantity", [1, 100])
def test_the_smallest_and_the_largest_order(order, customer, area, quantity):
    numbers = stock(customer, area, quantity)
    assert ordered(order(quantity, area_code=area)) == numbers


def test_an_order_may_use_the_credit_to_the_last_micro(order, customer, area):
    stock(customer, area, 2, price_micros=customer.balance_micros() // 2)
    assert order(2, area_code=area).status == 200
    assert customer.balance_micros() == 0


def test_the_mode_is_atomic_or_absent(order, customer, area):
    stock(customer, area, 2)
    assert order(1, area_code=area, mode="atomic").status == 200
    assert order(1, area_code=area, mode=None).status == 200


# ---------------------------------------------------------------- which numbers are chosen


def test_each_criterion_is_obeyed(order, customer, area):
    kinds = [
        {"number_type": "local", "sms_enabled": True, "mms_enabled": True},
        {"number_type": "toll_free", "sms_enabled": True, "mms_enabled": False},
        {"number_type": "short_code", "sms_enabled": False, "mms_enabled": True},
    ]
    local, toll_free, short_code = (stock(customer, area, **kind)[0] for kind in kinds)
    for other in kinds:
        stock(customer, new_area_code(), **other)
    assert ordered(order(1, area_code=area, number_type="toll_free")) == [toll_free]
    assert ordered(order(1, area_code=area, sms_enabled=False)) == [short_code]
    refuse_shortage(order(1, area_code=area, sms_enabled=False), 1, 0)
    refuse_shortage(order(1, area_code=area, mms_enabled=False), 1, 0)
    refuse_shortage(order(1, area_code=area, pattern="0000000"), 1, 0)
    assert ordered(order(1, pattern=local[1:], mms_enabled=True, sms_enabled=True)) == [local]


def test_numbers_that_are_not_free_for_all_are_never_chosen(order, call, customer, other_customer, area):
    held, held_by_other, sold, resting, resting_of_other, free = stock(customer, area, 6)
    stock(customer, area, free_at="2999-01-01T00:00:00Z")
    assert call.rpc("HoldNumbers", customer.key, numbers=[held]).status == 200
    assert call.rpc("HoldNumbers", other_customer.key, numbers=[held_by_other]).status == 200
    assert call(other_customer.key, numbers=[sold]).status == 200
    for owner, number in ((customer, resting), (other_customer, resting_of_other)):
        (row,) = call(owner.key, numbers=[number]).body["data"]
        assert call.rpc("ReleaseNumber", owner.key, id=row["id"]).status == 200
    before = all_rows(customer)
    refuse_shortage(order(2, area_code=area), 2, 1)
    assert all_rows(customer) == before
    assert ordered(order(1, area_code=area)) == [free]
    refuse_shortage(order(1, area_code=area), 1, 0)


def test_a_number_is_chosen_again_when_its_hold_or_rest_has_ended(order, call, customer, other_customer, area):
    held, rested = stock(customer, area, 2)
    assert call.rpc("HoldNumbers", other_customer.key, numbers=[held], minutes=10).status == 200
    (row,) = call(other_customer.key, numbers=[rested]).body["data"]
    assert call.rpc("ReleaseNumber", other_customer.key, id=row["id"]).status == 200
    let_time_pass(other_customer, minutes=10)
    refuse_shortage(order(2, area_code=area), 2, 1)
    let_time_pass(other_customer, days=30)
    assert ordered(order(2, area_code=area)) == [held, rested]
    for number in (held, rested):
        row = inventory_row(customer, number)
        assert (row["held_by"], row["free_at"], row["hold_id"]) == (None, None, None)


def test_an_order_does_not_wait_for_numbers_that_another_transaction_has_locked(order, customer, area):
    numbers = stock(customer, area, 4)
    with customer.engine.connect() as other:
        other.execute(text("SELECT FROM phone_number WHERE number = ANY(:n) FOR UPDATE"), {"n": numbers[:2]})
        assert ordered(order(2, area_code=area)) == numbers[2:]


def test_an_order_that_needs_a_locked_number_is_carried_out_once_it_is_free(call, customer, area):
    """Until its deadline. Then it has changed nothing."""
    stock(customer, area, 2)
    impatient = replace(call, timeout_seconds=2) if isinstance(call, Grpc) else call
    before = all_rows(customer)
    with customer.engine.connect() as other:
        other.execute(text("SELECT FROM phone_number WHERE number LIKE :n FOR UPDATE"), {"n": f"+1{area}%"})
        response = impatient.rpc("BulkOrderNumbers", customer.key, quantity=1, area_code=area)
    assert (response.status, response.body["error"]["code"]) == (503, "UNAVAILABLE")
    assert all_rows(customer) == before
    assert call.rpc("BulkOrderNumbers", customer.key, quantity=2, area_code=area).status == 200


# ---------------------------------------------------------------- refusals


def test_a_field_that_breaks_its_rule_is_422(call, customer):
    wrong = {
        "quantity": [0, 101, 2**32 - 1],
        "mode": ["", "partial", "ATOMIC"],
        "area_code": ["", "41", "41a"],
        "number_type": ["", "mobile"],
        "pattern": ["", "+1", "1" * 16],
        "inbound_url": ["", "http://example.com", "https://169.254.169.254/x", "https://a#b", "https://u@example.com"],
        "status_url": ["", "http://example.com", "https://localhost/x", "https://example.com/" + "x" * 2048],
        "campaign_id": ["", "x"],
        "label": ["", " ", "a\nb", "x" * 256],
    }
    for name, values in wrong.items():
        for value in values:
            request = {"quantity": 1, name: value}
            assert_invalid(call.rpc("BulkOrderNumbers", customer.key, **request), **{name: RULES[name]})


def test_422_lists_all_violations(call, customer):
    response = call.rpc("BulkOrderNumbers", customer.key, **dict.fromkeys(RULES.keys() - {"quantity"}, ""))
    assert_invalid(response, **RULES)


def test_too_few_numbers_are_409_with_their_count(order, customer, area):
    refuse_shortage(order(1, area_code=area), 1, 0)
    stock(customer, area, 3)
    stock(customer, area, 3, number_type="toll_free")
    before = all_rows(customer)
    refuse_shortage(order(5, area_code=area, number_type="local"), 5, 3)
    refuse_shortage(order(100, area_code=area), 100, 6)
    assert all_rows(customer) == before
    assert order(3, area_code=area, number_type="local").status == 200


def test_the_rules_of_an_order_hold_for_campaigns(order, customer, other_customer, area):
    stock(customer, area)
    before = all_rows(customer)
    for campaign_id in (uuid4(), other_customer.campaign()):
        assert_not_found(order(1, area_code=area, campaign_id=str(campaign_id)))
    pending, unverified = customer.campaign(status="PENDING"), customer.campaign(identity_status="UNVERIFIED")
    refused = order(1, area_code=area, campaign_id=str(pending))
    assert_invalid(refused, campaign_id="must be ACTIVE")
    refused = order(1, area_code=area, campaign_id=str(unverified))
    assert_invalid(refused, campaign_id="brand must be VERIFIED or VETTED_VERIFIED")
    assert all_rows(customer) == before


def test_an_order_beyond_the_credit_is_402(order, customer, area):
    stock(customer, area, 2, price_micros=customer.balance_micros() // 2 + 1)
    before = all_rows(customer)
    assert_refused(order(2, area_code=area), 402, "INSUFFICIENT_CREDIT", "insufficient credit")
    assert all_rows(customer) == before
    assert order(1, area_code=area).status == 200


def test_an_order_with_several_faults_is_refused_for_the_first(call, customer, area):
    """Each order has all the faults of the later ones too."""
    poor = customer.poor()
    stock(customer, area)
    unknown, pending, active = (str(c) for c in (uuid4(), poor.campaign(status="PENDING"), poor.campaign()))
    orders = [
        (poor.revoked_key("numbers:read"), {"quantity": 0, "campaign_id": unknown}, 401),
        (poor.new_key("numbers:read"), {"quantity": 0, "campaign_id": unknown}, 403),
        (poor.key, {"quantity": 0, "campaign_id": unknown}, 422),
        (poor.key, {"quantity": 2, "campaign_id": unknown}, 404),
        (poor.key, {"quantity": 2, "campaign_id": pending}, 422),
        (poor.key, {"quantity": 2, "campaign_id": active}, 409),
        (poor.key, {"quantity": 1, "campaign_id": active}, 402),
    ]
    for key, request, status in orders:
        response = call.rpc("BulkOrderNumbers", key, area_code=area, **request)
        assert response.status == status, response
    assert poor.owned() == set()


def test_numbers_of_a_bulk_order_are_unavailable_to_others(order, call, customer, other_customer, area):
    stock(customer, area, 2)
    numbers = ordered(order(2, area_code=area))
    assert_shortage(call(other_customer.key, numbers=numbers), 2, numbers)
