"""The documented call, every row of its tables, over REST and over gRPC, direct and through Envoy, compared whole."""

import json
import re
from uuid import UUID, uuid4

import pytest

from tests.support.callers import ULID, failure

ROW_IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def rows(numbers, **more):
    """What a success must look like, but for ids and instants."""
    return [{"number": n, "number_type": "local", "sms_enabled": True, "mms_enabled": False, **more} for n in numbers]


def assert_sold(answer, numbers, **more):
    assert answer.status == 200, answer
    assert ULID.fullmatch(answer.request_id)
    assert answer.body.keys() == {"success", "data"}
    assert answer.body["success"] is True
    found = [dict(row) for row in answer.body["data"]]
    for row in found:
        assert ROW_IDS.fullmatch(row.pop("id"))
        assert INSTANT.fullmatch(row["created_at"])
        assert row.pop("created_at") == row.pop("updated_at")
    assert found == rows(numbers, **more)


def assert_refused(answer, status, code, message, **more):
    assert (answer.status, answer.body) == (status, failure(code, message, answer.request_id, **more))
    assert ULID.fullmatch(answer.request_id)


# ---------------------------------------------------------------- success


@pytest.mark.parametrize("size", [1, 2, 100])
def test_numbers_are_assigned_in_the_order_of_the_request(call, customer, size):
    numbers = list(reversed(customer.numbers(size)))
    assert_sold(call(customer.key, numbers=numbers), numbers)
    assert customer.owned() == set(numbers)


def test_every_field_is_told_back(call, customer):
    numbers = customer.numbers(2)
    fields = {
        "inbound_url": "https://hooks.example.com/in?a=b",
        "status_url": "https://8.8.8.8/status",
        "label": 'Zoë said "hi" \\ 東京 🙂 </script> &amp; %s',
        "campaign_id": str(customer.campaign()),
    }
    assert_sold(call(customer.key, numbers=numbers, **fields), numbers, **fields)


def test_types_and_capabilities_are_those_of_the_inventory(call, customer):
    (number,) = customer.numbers(1, number_type="toll_free", sms_enabled=False, mms_enabled=True)
    (row,) = call(customer.key, numbers=[number]).body["data"]
    assert (row["number_type"], row["sms_enabled"], row["mms_enabled"]) == ("toll_free", False, True)


def test_ids_are_those_of_the_assignments_and_differ(call, customer):
    answer = call(customer.key, numbers=customer.numbers(3))
    ids = [UUID(row["id"]) for row in answer.body["data"]]
    assert len(set(ids)) == 3
    assert customer.assignment_ids() == set(ids)


def test_prices_are_taken_from_the_credit_to_the_last_micro(call, customer):
    cheap, dear = customer.numbers(1, price_micros=1) + customer.numbers(1, price_micros=customer.balance_micros() - 1)
    assert_sold(call(customer.key, numbers=[cheap, dear]), [cheap, dear])
    assert customer.balance_micros() == 0


# ---------------------------------------------------------------- refusals


def test_401_is_one_answer_for_every_fault_of_a_key(call, customer):
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


def test_403_tells_a_key_without_the_scope(call, customer):
    answer = call(customer.new_key("numbers:read"), numbers=[])
    assert_refused(answer, 403, "FORBIDDEN", "missing required scope")


def test_422_tells_all_violations_at_once(call, customer):
    answer = call(
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
    assert_refused(answer, 422, "VALIDATION_FAILED", "validation failed", details=details)


@pytest.mark.parametrize("size", [0, 101])
def test_422_tells_a_wrong_count(call, customer, size):
    answer = call(customer.key, numbers=[f"+1415555{i:04}" for i in range(size)])
    details = {"numbers": "must be 1..100 numbers"}
    assert_refused(answer, 422, "VALIDATION_FAILED", "validation failed", details=details)


def test_422_tells_a_repeated_number(call, customer):
    answer = call(customer.key, numbers=customer.numbers(1) * 2)
    details = {"numbers": "must not repeat a number"}
    assert_refused(answer, 422, "VALIDATION_FAILED", "validation failed", details=details)


def test_404_tells_a_campaign_that_is_not_ours_just_like_none(call, customer, other_customer):
    for campaign_id in (uuid4(), other_customer.campaign()):
        answer = call(customer.key, numbers=customer.numbers(1), campaign_id=str(campaign_id))
        assert_refused(answer, 404, "NOT_FOUND", "not found")


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
)
def test_422_tells_a_campaign_that_may_not_send(call, customer, campaign, rule):
    answer = call(customer.key, numbers=customer.numbers(1), campaign_id=str(customer.campaign(**campaign)))
    assert_refused(answer, 422, "VALIDATION_FAILED", "validation failed", details={"campaign_id": rule})


def test_409_names_every_unavailable_number_in_the_order_of_the_request(call, customer, other_customer):
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


def test_409_tells_when_none_is_available(call, customer):
    answer = call(customer.key, numbers=["+999000000000009"])
    shortage = {"available_count": 0, "unavailable": ["+999000000000009"]}
    message = "insufficient inventory: requested 1, available 0"
    assert_refused(answer, 409, "INSUFFICIENT_INVENTORY", message, data=shortage)


def test_402_tells_that_the_sum_exceeds_the_credit(call, customer):
    numbers = customer.numbers(2, price_micros=customer.balance_micros() // 2 + 1)
    before = customer.balance_micros()
    assert_refused(call(customer.key, numbers=numbers), 402, "INSUFFICIENT_CREDIT", "insufficient credit")
    assert (customer.owned(), customer.balance_micros()) == (set(), before)


def test_refusals_have_their_precedence(call, customer, other_customer):
    """Each order is wrong in every later way too, and is told the first."""
    poor, (sold,) = customer.poor(), customer.numbers(1)
    assert call(other_customer.key, numbers=[sold]).status == 200
    reader = poor.new_key("numbers:read")
    absent, pending, active = (str(c) for c in (uuid4(), poor.campaign(status="PENDING"), poor.campaign()))
    dear = customer.numbers(1)
    steps = [
        (call(poor.revoked_key("numbers:read"), numbers=["x"], campaign_id=absent), 401),
        (call(reader, numbers=["x"], campaign_id=absent), 403),
        (call(poor.key, numbers=["x"], campaign_id=absent), 422),
        (call(poor.key, numbers=[sold], campaign_id=absent), 404),
        (call(poor.key, numbers=[sold], campaign_id=pending), 422),
        (call(poor.key, numbers=[sold, *dear], campaign_id=active), 409),
        (call(poor.key, numbers=dear, campaign_id=active), 402),
    ]
    assert [answer.status for answer, _ in steps] == [status for _, status in steps]


def test_a_refused_order_leaves_no_trace(call, customer):
    before = customer.everything()
    call(customer.key, numbers=[*customer.numbers(1), "+999000000000009"])
    call(customer.key, numbers=customer.numbers(1, price_micros=10**15))
    after = customer.everything()
    assert before == after


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("kind", ["violations", "unavailable"])
def test_an_answer_about_a_hundred_numbers_arrives_200_times_of_200(grpc_edge_call, customer, kind):
    numbers = [f"+99900000000{i:04}" if kind == "unavailable" else f"x{i}" for i in range(100)]
    for _ in range(200):
        answer = grpc_edge_call(customer.key, numbers=numbers)
        if kind == "unavailable":
            assert answer.body["data"] == {"available_count": 0, "unavailable": numbers}
        else:
            assert answer.body["error"]["details"] == {f"numbers[{i}]": "must be E.164" for i in range(100)}


@pytest.mark.parametrize("label", ["é", "a\u2028", "🙂", '"\\/', "a\u0301", "\ufeffa", "\U0010ffff", "ünïcödé " * 20])
def test_labels_survive_however_json_escapes_them(rest, customer, label):
    for text in (json.dumps(label), json.dumps(label, ensure_ascii=False)):
        number = customer.numbers(1)
        body = f'{{"numbers": {json.dumps(number)}, "label": {text}}}'
        answer = rest.post(customer.key, body.encode())
        assert_sold(answer, number, label=label)
        assert customer.label_of(number[0]) == label
