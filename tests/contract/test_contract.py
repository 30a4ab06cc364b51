"""Every row of the documented tables, over REST and gRPC. Each response is compared as a whole."""

import json
import re
from uuid import UUID, uuid4

import pytest

from tests.support.callers import ULID, failure

ROW_IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def rows(numbers, **more):
    """The expected rows of a success, without ids and timestamps."""
    return [{"number": n, "number_type": "local", "sms_enabled": True, "mms_enabled": False, **more} for n in numbers]


def assert_sold(response, numbers, **more):
    assert response.status == 200, response
    assert ULID.fullmatch(response.request_id)
    assert response.body.keys() == {"success", "data"}
    assert response.body["success"] is True
    found = [dict(row) for row in response.body["data"]]
    for row in found:
        assert ROW_IDS.fullmatch(row.pop("id"))
        assert TIMESTAMP.fullmatch(row["created_at"])
        assert row.pop("created_at") == row.pop("updated_at")
    assert found == rows(numbers, **more)


def assert_refused(response, status, code, message, **more):
    assert (response.status, response.body) == (status, failure(code, message, response.request_id, **more))
    assert ULID.fullmatch(response.request_id)


# ---------------------------------------------------------------- success


@pytest.mark.parametrize("size", [1, 2, 100])
def test_numbers_are_assigned_in_the_order_of_the_request(call, customer, size):
    numbers = list(reversed(customer.numbers(size)))
    assert_sold(call(customer.key, numbers=numbers), numbers)
    assert customer.owned() == set(numbers)


def test_every_field_of_the_request_is_in_the_response(call, customer):
    numbers = customer.numbers(2)
    fields = {
        "inbound_url": "https://hooks.example.com/in?a=b",
        "status_url": "https://8.8.8.8/status",
        "label": 'Zoë said "hi" \\ 東京 🙂 </script> &amp; %s',
        "campaign_id": str(customer.campaign()),
    }
    assert_sold(call(customer.key, numbers=numbers, **fields), numbers, **fields)


def test_types_and_capabilities_come_from_the_inventory(call, customer):
    (number,) = customer.numbers(1, number_type="toll_free", sms_enabled=False, mms_enabled=True)
    (row,) = call(customer.key, numbers=[number]).body["data"]
    assert (row["number_type"], row["sms_enabled"], row["mms_enabled"]) == ("toll_free", False, True)


def test_each_number_has_the_id_of_its_assignment(call, customer):
    response = call(customer.key, numbers=customer.numbers(3))
    ids = [UUID(row["id"]) for row in response.body["data"]]
    assert len(set(ids)) == 3
    assert customer.assignment_ids() == set(ids)


def test_an_order_may_use_the_credit_to_the_last_micro(call, customer):
    cheap, expensive = customer.numbers(1, price_micros=1) + customer.numbers(
        1, price_micros=customer.balance_micros() - 1
    )
    assert_sold(call(customer.key, numbers=[cheap, expensive]), [cheap, expensive])
    assert customer.balance_micros() == 0


# ---------------------------------------------------------------- refusals


def test_401_is_the_same_for_every_invalid_key(call, customer):
    numbers = customer.numbers(1)
    for key in (
        None,
        "Basic abc",
        "Bearer x y",
        "am_live_",
        customer.unknown_key(),
        customer.expired_key(),
        customer.revoked_key(),
    ):
        assert_refused(call(key, numbers=numbers), 401, "UNAUTHORIZED", "authentication failed")
    assert customer.owned() == set()


def test_403_for_a_key_without_the_scope(call, customer):
    response = call(customer.new_key("numbers:read"), numbers=[])
    assert_refused(response, 403, "FORBIDDEN", "missing required scope")


def test_422_lists_all_violations(call, customer):
    response = call(
        customer.key,
        numbers=["+14155550100", "4155550100"],
        inbound_url="https://169.254.169.254/latest",
        status_url="http://example.com",
        campaign_id="none",
        label="",
    )
    details = {
        "numbers[1]": "must be E.164",
        "inbound_url": "must be a public https:// URL",
        "status_url": "must be a public https:// URL",
        "campaign_id": "must be a UUID",
        "label": "must be 1..255 chars",
    }
    assert_refused(response, 422, "VALIDATION_FAILED", "validation failed", details=details)


@pytest.mark.parametrize("size", [0, 101])
def test_422_for_too_few_or_too_many_numbers(call, customer, size):
    response = call(customer.key, numbers=[f"+1415555{i:04}" for i in range(size)])
    details = {"numbers": "must be 1..100 numbers"}
    assert_refused(response, 422, "VALIDATION_FAILED", "validation failed", details=details)


def test_422_for_a_repeated_number(call, customer):
    response = call(customer.key, numbers=customer.numbers(1) * 2)
    details = {"numbers": "must not repeat a number"}
    assert_refused(response, 422, "VALIDATION_FAILED", "validation failed", details=details)


def test_404_for_an_unknown_campaign_and_for_one_of_another_organization(call, customer, other_customer):
    for campaign_id in (uuid4(), other_customer.campaign()):
        response = call(customer.key, numbers=customer.numbers(1), campaign_id=str(campaign_id))
        assert_refused(response, 404, "NOT_FOUND", "not found")


@pytest.mark.parametrize(
    ("campaign", "rule"),
    [
        ({"status": "PENDING"}, "must be ACTIVE"),
        ({"status": "REJECTED"}, "must be ACTIVE"),
        ({"status": "EXPIRED", "identity_status": "UNVERIFIED"}, "must be ACTIVE"),
        ({"identity_status": "UNVERIFIED"}, "brand must be VERIFIED or VETTED_VERIFIED"),
        ({"identity_status": "SELF_DECLARED"}, "brand must be VERIFIED or VETTED_VERIFIED"),
        ({"identity_status": None}, "brand must be VERIFIED or VETTED_VERIFIED"),
    ],
    ids=["pending", "rejected", "expired", "brand unverified", "brand self-declared", "no brand"],
)
def test_422_for_a_campaign_that_may_not_send(call, customer, campaign, rule):
    response = call(customer.key, numbers=customer.numbers(1), campaign_id=str(customer.campaign(**campaign)))
    assert_refused(response, 422, "VALIDATION_FAILED", "validation failed", details={"campaign_id": rule})


def test_409_lists_unavailable_numbers_in_the_order_of_the_request(call, customer, other_customer):
    sold, free, quarantined = customer.numbers(1), customer.numbers(1), customer.quarantined_numbers(1)
    assert call(other_customer.key, numbers=sold).status == 200
    unknown = ["+999000000000009", "+999000000000001"]
    wanted = [unknown[0], *free, *quarantined, unknown[1], *sold]
    shortage = {"available_count": 1, "unavailable": [unknown[0], *quarantined, unknown[1], *sold]}
    assert_refused(
        call(customer.key, numbers=wanted),
        409,
        "INSUFFICIENT_INVENTORY",
        "insufficient inventory: requested 5, available 1",
        data=shortage,
    )
    assert customer.owned() == set()


def test_409_when_no_number_is_available(call, customer):
    response = call(customer.key, numbers=["+999000000000009"])
    shortage = {"available_count": 0, "unavailable": ["+999000000000009"]}
    message = "insufficient inventory: requested 1, available 0"
    assert_refused(response, 409, "INSUFFICIENT_INVENTORY", message, data=shortage)


def test_402_when_the_total_exceeds_the_credit(call, customer):
    numbers = customer.numbers(2, price_micros=customer.balance_micros() // 2 + 1)
    before = customer.balance_micros()
    assert_refused(call(customer.key, numbers=numbers), 402, "INSUFFICIENT_CREDIT", "insufficient credit")
    assert (customer.owned(), customer.balance_micros()) == (set(), before)


def test_an_order_with_several_faults_is_refused_for_the_first(call, customer, other_customer):
    """Each order has all the faults of the later ones too."""
    poor, (sold,) = customer.poor(), customer.numbers(1)
    assert call(other_customer.key, numbers=[sold]).status == 200
    reader = poor.new_key("numbers:read")
    unknown, pending, active = (str(c) for c in (uuid4(), poor.campaign(status="PENDING"), poor.campaign()))
    expensive = customer.numbers(1)
    calls = [
        (call(poor.revoked_key("numbers:read"), numbers=["x"], campaign_id=unknown), 401),
        (call(reader, numbers=["x"], campaign_id=unknown), 403),
        (call(poor.key, numbers=["x"], campaign_id=unknown), 422),
        (call(poor.key, numbers=[sold], campaign_id=unknown), 404),
        (call(poor.key, numbers=[sold], campaign_id=pending), 422),
        (call(poor.key, numbers=[sold, *expensive], campaign_id=active), 409),
        (call(poor.key, numbers=expensive, campaign_id=active), 402),
    ]
    assert [response.status for response, _ in calls] == [status for _, status in calls]


def test_a_refused_order_leaves_no_trace(call, customer):
    before = customer.everything()
    call(customer.key, numbers=[*customer.numbers(1), "+999000000000009"])
    call(customer.key, numbers=customer.numbers(1, price_micros=10**15))  # more than the credit
    after = customer.everything()
    assert before == after


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("kind", ["violations", "unavailable"])
def test_a_refusal_of_a_hundred_numbers_always_arrives(grpc_edge_call, customer, kind):
    numbers = [f"+99900000000{i:04}" if kind == "unavailable" else f"x{i}" for i in range(100)]
    # A refusal travels in trailers. gRPC fails long ones at random, so one call would show little.
    for _ in range(200):
        response = grpc_edge_call(customer.key, numbers=numbers)
        if kind == "unavailable":
            assert response.body["data"] == {"available_count": 0, "unavailable": numbers}
        else:
            assert response.body["error"]["details"] == {f"numbers[{i}]": "must be E.164" for i in range(100)}


LABELS = {
    "Latin": "é",
    "line separator": "a\u2028",
    "emoji": "🙂",
    "quote and slashes": '"\\/',
    "combining accent": "a\u0301",
    "byte order mark": "\ufeffa",
    "last code point": "\U0010ffff",
    "long": "ünïcödé " * 20,
}


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
def test_a_label_is_stored_whether_or_not_json_escapes_it(rest, customer, label):
    for text in (json.dumps(label), json.dumps(label, ensure_ascii=False)):
        number = customer.numbers(1)
        body = f'{{"numbers": {json.dumps(number)}, "label": {text}}}'
        response = rest.post(customer.key, body.encode())
        assert_sold(response, number, label=label)
        assert customer.label_of(number[0]) == label
