"""Every field of every request: which values are accepted, and which rule the others break.

test_validation.py has the same for an order in depth, above all for its URLs and its label.
"""

from typing import Any, NamedTuple

import pytest
from google.protobuf.message_factory import GetMessageClass

from ordernumbers.v1.phone_number_service_pb2 import DESCRIPTOR
from server.rpc import validation

SERVICE = DESCRIPTOR.services_by_name["PhoneNumberService"]
REQUESTS = {method.name: GetMessageClass(method.input_type) for method in SERVICE.methods}
ID = "0190b0a0-0000-7000-8000-000000000001"
NUMBER = "+14155550100"
COUNT = "must be 1..100"


class Rule(NamedTuple):
    """Values that are accepted, values that are not, and the text for those. A pair has a path and the text for it."""

    good: list[Any]
    bad: list[Any]
    text: str = ""


def numbers(count):
    return [f"+1415555{i:04}" for i in range(count)]


def ids(count):
    return [f"0190b0a0-0000-7000-8000-{i:012}" for i in range(count)]


URLS = ["https://example.com", "https://example.com/a?b=c", "https://8.8.8.8/x"]
BAD_URLS = ["x", "http://example.com", "https://localhost", "https://10.0.0.1", "https://a@example.com",
            "https://example.com#a", "https://example.com/" + "a" * 2048]  # fmt: skip
LABELS = ["a", "é" * 255, "🙂" * 255, " a "]
BAD_LABELS = ["a" * 256, "a\0", "a\nb", " ", "\u200b", "\ufe0f", "\U000e0020", "\u3164"]
NOT_PUBLIC, LENGTH = "must be a public https:// URL", "must be 1..255 chars"

ANY_BOOLEAN = Rule([True, False], [])
UUID = Rule(
    [ID, ID.upper()],
    ["", "x", ID[:-1], f"{ID}0", ID.replace("-", ""), f"{{{ID}}}", f"{ID}\n", f" {ID}", f"g{ID[1:]}"],
    "must be a UUID",
)
URL = Rule(URLS, ["", *BAD_URLS], NOT_PUBLIC)
URL_OR_EMPTY = Rule(["", *URLS], BAD_URLS, NOT_PUBLIC)
LABEL = Rule(LABELS, ["", *BAD_LABELS], LENGTH)
LABEL_OR_EMPTY = Rule(["", *LABELS], BAD_LABELS, LENGTH)
AREA_CODE = Rule(["415", "000"], ["", "41", "4155", "41a", "٤١٥", "415\n", " 415", "+41"], "must be 3 digits")
NUMBER_TYPE = Rule(
    ["local", "toll_free", "short_code"],
    ["", "Local", "mobile", "local ", "local\n"],
    "must be local, toll_free or short_code",
)
PATTERN = Rule(["0", "1" * 15], ["", "1" * 16, "+1", "1*", "%", "1\n", "١"], "must be 1..15 digits")
QUANTITY = Rule([1, 10, 100], [0, 101, 2**32 - 1], COUNT)
MINUTES = Rule([1, 10, 30], [0, 31, 2**32 - 1], "must be 1..30")
MODE = Rule(["atomic"], ["", "Atomic", "partial", "atomic\n"], "must be atomic")
CURSOR = Rule(
    ["AZCwoAAAcACAAAAAAAAAAQ", "_" * 21 + "w", "-" * 21 + "A"],
    ["", "a" * 21, "a" * 23, "a" * 20 + "==", "a" * 21 + "+", "a" * 21 + "/", "a" * 22 + "\n"],
    "must be the next_cursor of a response",
)
SEARCH = Rule(["a", "+1415", "%_\\", "é" * 255, " "], ["", "a" * 256, "a\0", "a\nb", "\x7f", "\x85"], LENGTH)
KEY = Rule(
    ["k", "k" * 255, '"k"', "!~"],
    ["", "k" * 256, "a b", "é", "k\n", "\x7f"],
    "must be one of 1..255 visible ASCII characters",
)
NUMBERS = Rule(
    [numbers(1), numbers(100), ["+12", "+123456789012345"]],
    [
        ([], {"numbers": f"{COUNT} numbers"}),
        (numbers(101), {"numbers": f"{COUNT} numbers"}),
        ([NUMBER, NUMBER], {"numbers": "must not repeat a number"}),
        ([NUMBER, "4155550100", "+1"], {"numbers[1]": "must be E.164", "numbers[2]": "must be E.164"}),
    ],
)
IDS = Rule(
    [ids(1), ids(100), [ID, ID], [ID.upper()]],
    [
        ([], {"ids": f"{COUNT} ids"}),
        (ids(101), {"ids": f"{COUNT} ids"}),
        (["x"] * 10_000, {"ids": f"{COUNT} ids"}),
        ([ID, "", ID[:-1]], {"ids[1]": "must be a UUID", "ids[2]": "must be a UUID"}),
    ],
)

CRITERIA = {
    "area_code": AREA_CODE,
    "number_type": NUMBER_TYPE,
    "pattern": PATTERN,
    "sms_enabled": ANY_BOOLEAN,
    "mms_enabled": ANY_BOOLEAN,
    "quantity": QUANTITY,
}
SETTINGS = {"inbound_url": URL, "status_url": URL, "label": LABEL, "campaign_id": UUID}
RULES: dict[str, dict[str, Rule]] = {
    "SearchNumbers": CRITERIA,
    "OrderNumbers": {"numbers": NUMBERS, **SETTINGS, "validate_only": ANY_BOOLEAN},
    "BulkOrderNumbers": {**CRITERIA, **SETTINGS, "mode": MODE},
    "GetBulkOrder": {"id": UUID},
    "GetOrder": {"id": UUID},
    "FindOrder": {"idempotency_key": KEY},
    "HoldNumbers": {"numbers": NUMBERS, "minutes": MINUTES},
    "GetHold": {"id": UUID},
    "ReleaseHold": {"id": UUID},
    "ListNumbers": {
        "limit": QUANTITY,
        "cursor": CURSOR,
        "number_type": NUMBER_TYPE,
        "campaign_id": UUID,
        "search": SEARCH,
    },
    "GetNumber": {"id": UUID},
    "UpdateNumber": {
        "id": UUID,
        "inbound_url": URL_OR_EMPTY,
        "status_url": URL_OR_EMPTY,
        "label": LABEL_OR_EMPTY,
        "campaign_id": UUID,
    },
    "AttachCampaign": {"id": UUID, "campaign_id": UUID},
    "DetachCampaign": {"id": UUID},
    "ReleaseNumber": {"id": UUID},
    "BulkReleaseNumbers": {"ids": IDS},
}
# The fields without which a request is refused, with a good value for each.
REQUIRED = {
    "OrderNumbers": {"numbers": [NUMBER]},
    "BulkOrderNumbers": {"quantity": 1},
    "FindOrder": {"idempotency_key": "k"},
    "HoldNumbers": {"numbers": [NUMBER]},
    "AttachCampaign": {"id": ID, "campaign_id": ID},
    "BulkReleaseNumbers": {"ids": [ID]},
    **{rpc: {"id": ID} for rpc, fields in RULES.items() if [*fields] == ["id"]},
    "UpdateNumber": {"id": ID},
}
each_rpc = pytest.mark.parametrize("rpc", RULES)
each_field = pytest.mark.parametrize(("rpc", "name"), [(rpc, name) for rpc, fields in RULES.items() for name in fields])


def violations(rpc, **fields):
    return validation.violations(REQUESTS[rpc](**{**REQUIRED.get(rpc, {}), **fields}))


def test_this_test_knows_every_field_of_every_request():
    known = {rpc: set(fields) for rpc, fields in RULES.items()}
    assert known == {rpc: set(request.DESCRIPTOR.fields_by_name) for rpc, request in REQUESTS.items()}


@each_rpc
def test_a_request_needs_only_its_required_fields(rpc):
    assert violations(rpc) == {}
    missing = validation.violations(REQUESTS[rpc]())
    assert missing.keys() == REQUIRED.get(rpc, {}).keys()


@each_field
def test_each_good_value_is_accepted(rpc, name):
    for value in RULES[rpc][name].good:
        assert violations(rpc, **{name: value}) == {}, value


@each_field
def test_each_bad_value_is_refused_with_the_text_of_its_rule(rpc, name):
    rule = RULES[rpc][name]
    for each in rule.bad:
        value, expected = each if isinstance(each, tuple) else (each, {name: rule.text})
        assert violations(rpc, **{name: value}) == expected, value


@each_rpc
def test_all_fields_at_fault_are_returned_at_once(rpc):
    bad = {name: rule.bad[0] for name, rule in RULES[rpc].items() if rule.bad}
    values = {name: each[0] if isinstance(each, tuple) else each for name, each in bad.items()}
    assert violations(rpc, **values).keys() == bad.keys()
