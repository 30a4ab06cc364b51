"""OrderNumbers with `validate_only`: the decision on an order, while nothing is changed and nothing is locked."""

from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.support.inventory import (
    all_rows,
    assert_invalid,
    assert_not_found,
    assert_refused,
    assert_shortage,
    assert_success,
    inventory_row,
    values_of,
)

FIELDS = {"inbound_url": "https://example.com/in", "status_url": "https://example.com/s", "label": "é"}


@pytest.fixture
def check(call, customer):
    """Check an order, and fail if that changes anything."""

    def check(numbers, key=None, **fields):
        before = all_rows(customer), [inventory_row(customer, n) for n in customer.owned()]
        response = call(key or customer.key, numbers=numbers, validate_only=True, **fields)
        assert (all_rows(customer), [inventory_row(customer, n) for n in customer.owned()]) == before
        return response

    return check


def preview(number, **more):
    return {"number": number, "number_type": "local", "sms_enabled": True, "mms_enabled": False, **more}


# ---------------------------------------------------------------- success


def test_the_response_has_the_rows_without_ids_and_times_and_the_total(check, customer):
    cheap, free = customer.numbers(1, price_micros=300_000), customer.numbers(1, price_micros=0)
    numbers = [*free, *cheap]
    assert_success(check(numbers), [preview(n) for n in numbers], meta={"total_price": "0.30"})
    assert [inventory_row(customer, n)["assignment_id"] for n in numbers] == [None, None]


def test_every_field_of_the_request_is_in_the_rows(check, customer):
    numbers = customer.numbers(2, number_type="toll_free", sms_enabled=False, mms_enabled=True)
    kind = {"number_type": "toll_free", "sms_enabled": False, "mms_enabled": True}
    fields = FIELDS | {"campaign_id": str(customer.campaign())}
    rows = [preview(number, **kind, **fields) for number in numbers]
    assert_success(check(numbers, **fields), rows, meta={"total_price": "2.00"})


def test_the_total_of_a_hundred_numbers_in_the_order_of_the_request(check, customer):
    numbers = list(reversed(customer.numbers(100, price_micros=1_234_567)))
    assert_success(check(numbers), [preview(number) for number in numbers], meta={"total_price": "123.4567"})


def test_false_and_absent_are_an_order(call, customer):
    for more in ({"validate_only": False}, {}):
        numbers = customer.numbers(1)
        response = call(customer.key, numbers=numbers, **more)
        assert (response.status, response.body.keys()) == (200, {"success", "data"})
        assert customer.owned() >= {*numbers}


def test_null_is_an_order(rest, customer):
    numbers = customer.numbers(1)
    assert rest(customer.key, numbers=numbers, validate_only=None).body.keys() == {"success", "data"}
    assert customer.owned() == {*numbers}


def test_an_order_that_was_checked_is_then_carried_out_as_shown(check, call, customer):
    numbers = customer.numbers(2, price_micros=customer.balance_micros() // 2)
    checked = check(numbers, **FIELDS).body["data"]
    rows = call(customer.key, numbers=numbers, **FIELDS).body["data"]
    without = ("id", "created_at", "updated_at")
    assert [{name: row[name] for name in row if name not in without} for row in rows] == checked


def test_held_and_resting_numbers_of_the_organization_can_be_ordered(check, call, customer):
    held, resting = customer.numbers(2)
    assert call.rpc("HoldNumbers", customer.key, numbers=[held]).status == 200
    (row,) = call(customer.key, numbers=[resting]).body["data"]
    assert call.rpc("ReleaseNumber", customer.key, id=row["id"]).status == 200
    rows = [preview(held), preview(resting)]
    assert_success(check([held, resting]), rows, meta={"total_price": "2.00"})


def test_a_check_does_not_wait_for_locked_rows(check, customer):
    (number,) = customer.numbers(1)
    with customer.engine.connect() as other:
        other.execute(text("SELECT FROM phone_number WHERE number = :number FOR UPDATE"), {"number": number})
        other.execute(text("SELECT FROM organization WHERE id = :id FOR UPDATE"), {"id": customer.id})
        assert check([number]).status == 200


# ---------------------------------------------------------------- idempotency keys


def test_an_idempotency_key_is_not_used_up(check, call, customer):
    numbers, key = customer.numbers(1), str(uuid4())
    for _ in range(2):
        checked = check(numbers, idempotency_key=key)
        assert (checked.status, "idempotency-replayed" in checked.headers) == (200, False)
    response = call(customer.key, numbers=numbers, idempotency_key=key)
    assert (response.status, "idempotency-replayed" in response.headers) == (200, False)


def test_an_idempotency_key_is_not_read(check, call, customer):
    first, second = customer.numbers(2)
    key = str(uuid4())
    assert call(customer.key, numbers=[first], idempotency_key=key).status == 200
    assert_success(check([second], idempotency_key=key), [preview(second)], meta={"total_price": "1.00"})
    assert_shortage(check([first], idempotency_key=key), 1, [first])


def test_an_idempotency_key_that_is_in_use_is_no_matter(check, customer):
    numbers, key = customer.numbers(1), str(uuid4())
    insert = text("INSERT INTO idempotency_key SELECT :id, :key, '', :id, '', clock_timestamp()")
    with customer.engine.connect() as other:
        other.execute(insert, {"id": customer.id, "key": key})
        assert check(numbers, idempotency_key=key).status == 200


def test_a_malformed_idempotency_key_is_refused(check, customer):
    rule = {"idempotency-key": "must be one of 1..255 visible ASCII characters"}
    assert_invalid(check(customer.numbers(1), idempotency_key="a b"), **rule)


# ---------------------------------------------------------------- refusals


def test_422_lists_all_violations(check):
    response = check(["+1", "+1"], inbound_url="x", status_url="https://10.0.0.1/", label="", campaign_id="x")
    url = "must be a public https:// URL"
    assert_invalid(
        response,
        **{"numbers[0]": "must be E.164", "numbers[1]": "must be E.164", "numbers": "must not repeat a number"},
        inbound_url=url,
        status_url=url,
        label="must be 1..255 chars",
        campaign_id="must be a UUID",
    )


def test_the_rules_of_an_order_hold_for_campaigns(check, customer, other_customer):
    numbers = customer.numbers(1)
    for campaign_id in (uuid4(), other_customer.campaign()):
        assert_not_found(check(numbers, campaign_id=str(campaign_id)))
    for campaign, rule in (
        ({"status": "EXPIRED"}, "must be ACTIVE"),
        ({"identity_status": "SELF_DECLARED"}, "brand must be VERIFIED or VETTED_VERIFIED"),
        ({"identity_status": None}, "brand must be VERIFIED or VETTED_VERIFIED"),
    ):
        assert_invalid(check(numbers, campaign_id=str(customer.campaign(**campaign))), campaign_id=rule)


def test_409_names_every_number_that_the_organization_cannot_order(check, call, customer, other_customer):
    own, sold, held, resting, free = customer.numbers(5)
    assert call(customer.key, numbers=[own]).status == 200
    (row,) = call(other_customer.key, numbers=[resting]).body["data"]
    assert call.rpc("ReleaseNumber", other_customer.key, id=row["id"]).status == 200
    assert call(other_customer.key, numbers=[sold]).status == 200
    assert call.rpc("HoldNumbers", other_customer.key, numbers=[held]).status == 200
    unavailable = [held, "+999000000000009", sold, *customer.quarantined_numbers(1), resting, own]
    assert_shortage(check([unavailable[0], free, *unavailable[1:]]), 7, unavailable)


def test_402_beyond_the_credit(check, customer):
    numbers = customer.numbers(2, price_micros=customer.balance_micros() // 2 + 1)
    assert_refused(check(numbers), 402, "INSUFFICIENT_CREDIT", "insufficient credit")
    assert check(numbers[:1]).status == 200


def test_a_checked_order_is_refused_for_its_first_fault_as_an_order_is(call, customer):
    """Each order has all the faults of the later ones too."""
    poor, expensive = customer.poor(), customer.numbers(1)
    unknown, pending, active = (str(c) for c in (uuid4(), poor.campaign(status="PENDING"), poor.campaign()))
    sold = customer.numbers(1)
    assert call(customer.key, numbers=sold).status == 200
    orders = [
        (poor.revoked_key("numbers:read"), {"numbers": ["x"], "campaign_id": unknown}, 401),
        (poor.new_key("numbers:read"), {"numbers": ["x"], "campaign_id": unknown}, 403),
        (poor.key, {"numbers": ["x"], "campaign_id": unknown}, 422),
        (poor.key, {"numbers": sold, "campaign_id": unknown}, 404),
        (poor.key, {"numbers": sold, "campaign_id": pending}, 422),
        (poor.key, {"numbers": [*sold, *expensive], "campaign_id": active}, 409),
        (poor.key, {"numbers": expensive, "campaign_id": active}, 402),
    ]
    for key, request, status in orders:
        checked, ordered = (call(key, **request, validate_only=only) for only in (True, False))
        assert checked.status == status
        assert checked.body["error"].pop("request_id") != ordered.body["error"].pop("request_id")
        assert checked.body == ordered.body


def test_a_refused_check_leaves_no_idempotency_key(check, customer):
    assert check(["+999000000000009"], idempotency_key="x").status == 409
    assert values_of(customer, "SELECT key FROM idempotency_key WHERE organization_id = :id", id=customer.id) == []
