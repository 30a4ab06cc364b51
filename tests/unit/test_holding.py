"""The decisions on holds, on changes of routing, and on releases, without a database."""

from datetime import UTC, datetime, timedelta

import pytest

from server.errors import Code, Refusal
from server.rules.assignments import Known, release, route
from server.rules.holds import hold
from server.rules.values import (
    AssignedNumber,
    Campaign,
    Held,
    Hold,
    Number,
    Release,
    Released,
    Route,
    Routed,
    State,
)

NOW = datetime(2026, 4, 26, 12, tzinfo=UTC)
EARLIER = NOW - timedelta(days=1)
OURS, OTHER = "00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-000000000002"
ID, CAMPAIGN = "00000000-0000-7000-9000-000000000001", "00000000-0000-7000-a000-000000000001"
NUMBERS = ("+14155550100", "+14155550101")


def number(held_by=None, free_at=None, assignment_id=None):
    return Number("local", True, False, 1_000_000, assignment_id, held_by, free_at)


def known(label="old", is_live=True, is_resting=False, id_=ID, campaign_id=None):
    row = AssignedNumber(id_, NUMBERS[0], "local", True, False, None, None, label, campaign_id, EARLIER, EARLIER)
    return {id_: Known(row, is_live, is_resting)}


# ---------------------------------------------------------------- holds


def held(numbers=NUMBERS, minutes=10, held_max=1000, already=0, rows=None):
    state = State(NOW, numbers=rows or dict.fromkeys(NUMBERS, number()))
    return hold(OURS, ID, Hold(numbers, minutes, held_max), already, state)


def test_a_hold_keeps_all_its_numbers_for_its_minutes():
    assert held(minutes=30) == Held(ID, NUMBERS, NOW, NOW + timedelta(minutes=30))


def test_a_hold_needs_every_number():
    rows = {NUMBERS[0]: number(), NUMBERS[1]: number(held_by=OTHER, free_at=NOW + timedelta(seconds=1))}
    refusal = held(rows=rows)
    assert (refusal.code, refusal.shortage.available_count) == (Code.INSUFFICIENT_INVENTORY, 1)
    assert refusal.shortage.unavailable == [NUMBERS[1]]


@pytest.mark.parametrize("by", [OURS, OTHER])
def test_a_hold_that_has_expired_is_no_hold(by):
    rows = {NUMBERS[0]: number(held_by=by, free_at=NOW)}
    assert isinstance(held(NUMBERS[:1], rows=rows), Held)


def test_an_organization_may_hold_again_what_it_holds():
    rows = {NUMBERS[0]: number(held_by=OURS, free_at=NOW + timedelta(days=1))}
    assert isinstance(held(NUMBERS[:1], rows=rows), Held)


def test_the_numbers_that_an_organization_holds_are_limited():
    assert isinstance(held(already=8, held_max=10), Held)
    refusal = held(already=9, held_max=10)
    assert (refusal.code, refusal.message) == (Code.LIMIT_EXCEEDED, "limit exceeded: at most 10 numbers can be held")


def test_a_shortage_is_told_before_the_limit():
    rows = {NUMBERS[0]: number(assignment_id=ID)}
    assert held(NUMBERS[:1], already=10, held_max=10, rows=rows).code is Code.INSUFFICIENT_INVENTORY


# ---------------------------------------------------------------- routing


def routed(changes, numbers=None, **campaign):
    state = State(NOW, campaigns={(OURS, CAMPAIGN): Campaign(**campaign)} if campaign else {})
    return route(OURS, Route(ID, changes), known() if numbers is None else numbers, state)


def test_a_change_leaves_what_it_does_not_name():
    result = routed({"inbound_url": "https://example.com/in"})
    assert result.after == result.before._replace(inbound_url="https://example.com/in", updated_at=NOW)


def test_a_change_to_none_removes_a_value():
    assert routed({"label": None}).after.label is None


def test_equal_values_are_no_change():
    (same,) = known().values()
    assert routed({"label": "old"}) == Routed(same.number, same.number)


@pytest.mark.parametrize("numbers", [{}, known(is_live=False)], ids=["unknown", "released"])
def test_only_a_number_that_the_organization_has_can_be_changed(numbers):
    assert routed({"campaign_id": CAMPAIGN}, numbers).code is Code.NOT_FOUND


def test_a_campaign_obeys_the_rules_of_an_order():
    assert routed({"campaign_id": CAMPAIGN}).code is Code.NOT_FOUND
    refusal = routed({"campaign_id": CAMPAIGN}, status="PENDING", identity_status="VERIFIED")
    assert (refusal.code, refusal.details) == (Code.VALIDATION_FAILED, {"campaign_id": "must be ACTIVE"})
    result = routed({"campaign_id": CAMPAIGN}, status="ACTIVE", identity_status="VERIFIED")
    assert result.after.campaign_id == CAMPAIGN


def test_a_number_leaves_a_campaign_that_may_not_send_any_more():
    result = routed({"campaign_id": None}, known(campaign_id=CAMPAIGN), status="EXPIRED", identity_status=None)
    assert result.after.campaign_id is None


# ---------------------------------------------------------------- releases


def released(*ids, numbers, is_bulk=True):
    return release(Release(ids, 60_000, is_bulk), numbers, NOW)


def test_a_released_number_rests():
    result = released(ID, numbers=known())
    assert isinstance(result, Released)
    assert result.available_at == NOW + timedelta(minutes=1)


def test_each_id_of_a_bulk_release_is_in_one_list():
    resting, gone, strange = (f"{ID[:-1]}{i}" for i in (2, 3, 4))
    numbers = known() | known(id_=resting, is_live=False, is_resting=True) | known(id_=gone, is_live=False)
    result = released(strange, ID, ID, gone, resting, numbers=numbers)
    assert [number.id for number in result.released] == [ID]
    assert result.already_released == [resting]
    assert result.unknown == [strange, gone]


@pytest.mark.parametrize("numbers", [{}, known(is_live=False, is_resting=True)], ids=["unknown", "resting"])
def test_one_number_that_the_organization_does_not_have_is_not_found(numbers):
    refusal = released(ID, numbers=numbers, is_bulk=False)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.NOT_FOUND


def test_a_bulk_release_may_find_nothing():
    assert released(ID, numbers={}).unknown == [ID]
