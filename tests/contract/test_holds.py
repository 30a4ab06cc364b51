"""HoldNumbers, GetHold and ReleaseHold: numbers that only one organization can order for some minutes."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
import pytest

from tests.support.callers import TIMEOUT_SECONDS, Rest
from tests.support.customer import Customer
from tests.support.inventory import (
    all_rows,
    assert_invalid,
    assert_not_found,
    assert_refused,
    assert_shortage,
    assert_success,
    inventory_row,
    let_time_pass,
    values_of,
)
from tests.support.stack import Up, local_settings

HELD_MAX = 5


@pytest.fixture
def hold(call, customer):
    """Hold numbers with the customer's key, and return the hold."""

    def hold(numbers, **request):
        response = call.rpc("HoldNumbers", customer.key, numbers=numbers, **request)
        assert response.status == 200, response
        return response.body["data"]

    return hold


@pytest.fixture
def kept(call, customer):
    """The numbers that a hold of the customer keeps."""

    def kept(hold):
        response = call.rpc("GetHold", customer.key, id=hold["id"])
        assert response.status == 200, response
        return response.body["data"]["numbers"]

    return kept


def can_order(call, customer, number):
    """Whether the customer could order the number now."""
    response = call(customer.key, numbers=[number], validate_only=True)
    if response.status != 200:
        assert_shortage(response, 1, [number])
    return response.status == 200


def released(call, customer, number, **fields):
    """Order a number and release it, so that it rests. Return when it is available."""
    (row,) = call(customer.key, numbers=[number], **fields).body["data"]
    return call.rpc("ReleaseNumber", customer.key, id=row["id"]).body["data"]["available_at"]


def at(text):
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


# ---------------------------------------------------------------- HoldNumbers


def test_a_hold_keeps_its_numbers_for_ten_minutes(call, customer):
    numbers = list(reversed(customer.numbers(3)))
    response = call.rpc("HoldNumbers", customer.key, numbers=numbers)
    data = response.body["data"]
    assert_success(response, {"id": data["id"], "numbers": numbers, **times_of(data)})
    assert at(data["expires_at"]) - at(data["created_at"]) == timedelta(minutes=10)
    assert abs(at(data["created_at"]) - datetime.now(UTC)) < timedelta(seconds=30)
    assert_success(call.rpc("GetHold", customer.key, id=data["id"]), data)


def times_of(data):
    return {name: data[name] for name in ("created_at", "expires_at")}


def test_a_hold_is_in_the_database(customer, hold):
    numbers = list(reversed(customer.numbers(2)))
    data = hold(numbers, minutes=7)
    query = """
        SELECT jsonb_build_array(id, api_key_id, numbers, released_at, extract(epoch FROM expires_at - created_at))
        FROM hold WHERE organization_id = :id
    """
    assert values_of(customer, query, id=customer.id) == [[data["id"], str(customer.key_id), numbers, None, 420]]
    for number in numbers:
        row = inventory_row(customer, number)
        assert (row["held_by"], row["hold_id"]) == (str(customer.id), data["id"])
        assert row["free_at"][:19] == data["expires_at"][:19]
        assert (row["assignment_id"], row["rest_until"]) == (None, None)
    assert customer.balance_micros() == 1_000_000_000_000


@pytest.mark.parametrize("minutes", [1, 30])
def test_the_shortest_and_the_longest_hold(customer, hold, minutes):
    data = hold(customer.numbers(1), minutes=minutes)
    assert at(data["expires_at"]) - at(data["created_at"]) == timedelta(minutes=minutes)


def test_a_hold_of_a_hundred_numbers(customer, hold, kept):
    numbers = list(reversed(customer.numbers(100)))
    assert kept(hold(numbers)) == numbers


def test_others_cannot_order_or_hold_a_held_number(call, customer, other_customer, hold):
    held, free = customer.numbers(2)
    hold([held])
    assert_shortage(call(other_customer.key, numbers=[free, held]), 2, [held])
    assert_shortage(call.rpc("HoldNumbers", other_customer.key, numbers=[held, free]), 2, [held])
    assert inventory_row(customer, held)["held_by"] == str(customer.id)
    assert inventory_row(customer, free)["held_by"] is None


def test_the_organization_orders_its_held_numbers(call, customer, hold, kept):
    first, second = customer.numbers(2)
    data = hold([first, second])
    assert call(customer.key, numbers=[second]).status == 200
    row = inventory_row(customer, second)
    assert (row["held_by"], row["free_at"], row["hold_id"]) == (None, None, None)
    assert kept(data) == [first]
    assert call(customer.key, numbers=[first]).status == 200
    assert kept(data) == []


def test_an_expired_hold_counts_no_more(call, customer, other_customer, hold):
    (number,) = customer.numbers(1)
    data = hold([number], minutes=30)
    let_time_pass(customer, minutes=29)
    assert not can_order(call, other_customer, number)
    let_time_pass(customer, minutes=1)
    assert can_order(call, other_customer, number)
    assert_not_found(call.rpc("GetHold", customer.key, id=data["id"]))
    assert_not_found(call.rpc("ReleaseHold", customer.key, id=data["id"]))
    assert call.rpc("HoldNumbers", other_customer.key, numbers=[number]).status == 200
    assert not can_order(call, customer, number)


def test_a_number_that_is_held_again_belongs_to_the_new_hold(call, customer, hold, kept):
    first, second = customer.numbers(2)
    old = hold([first, second], minutes=30)
    new = hold([second], minutes=1)
    assert (kept(old), kept(new)) == ([first], [second])
    assert inventory_row(customer, second)["free_at"][:19] == new["expires_at"][:19]


@pytest.mark.parametrize("state", ["sold", "own", "held", "resting", "quarantined", "unknown"])
def test_a_hold_of_a_number_that_cannot_be_ordered_is_refused_as_a_whole(call, customer, other_customer, state):
    free, number = customer.numbers(2)
    match state:
        case "sold" | "own":
            assert call((customer if state == "own" else other_customer).key, numbers=[number]).status == 200
        case "held":
            assert call.rpc("HoldNumbers", other_customer.key, numbers=[number]).status == 200
        case "resting":
            released(call, other_customer, number)
        case "quarantined":
            (number,) = customer.quarantined_numbers(1)
        case "unknown":
            number = "+999000000000009"
    before = all_rows(customer)
    assert_shortage(call.rpc("HoldNumbers", customer.key, numbers=[free, number]), 2, [number])
    assert (all_rows(customer), inventory_row(customer, free)["held_by"]) == (before, None)


def test_fields_that_break_their_rules_are_422(call, customer):
    count, e164 = "must be 1..100 numbers", "must be E.164"
    number = "+14155550100"
    for request, details in (
        ({"numbers": []}, {"numbers": count}),
        ({"numbers": [f"+1415555{i:04}" for i in range(101)]}, {"numbers": count}),
        ({"numbers": [number, number]}, {"numbers": "must not repeat a number"}),
        ({"numbers": [number, "4155550100", ""]}, {"numbers[1]": e164, "numbers[2]": e164}),
        ({"numbers": [number], "minutes": 0}, {"minutes": "must be 1..30"}),
        ({"numbers": [], "minutes": 31}, {"numbers": count, "minutes": "must be 1..30"}),
    ):
        assert_invalid(call.rpc("HoldNumbers", customer.key, **request), **details)


# ---------------------------------------------------------------- rest


def test_a_hold_does_not_shorten_the_rest_of_a_number(call, customer, other_customer, hold):
    (number,) = customer.numbers(1)
    available_at = released(call, customer, number)
    data = hold([number], minutes=10)
    assert inventory_row(customer, number)["free_at"][:19] == available_at[:19]
    let_time_pass(customer, minutes=10)
    assert_not_found(call.rpc("GetHold", customer.key, id=data["id"]))
    assert can_order(call, customer, number)
    assert not can_order(call, other_customer, number)
    let_time_pass(customer, days=30)
    assert can_order(call, other_customer, number)


def test_a_hold_that_ends_after_the_rest_keeps_the_number(call, customer, other_customer, hold):
    (number,) = customer.numbers(1)
    released(call, customer, number)
    let_time_pass(customer, days=29, hours=23, minutes=55)
    hold([number], minutes=30)
    let_time_pass(customer, minutes=29)
    assert not can_order(call, other_customer, number)
    let_time_pass(customer, minutes=1)
    assert can_order(call, other_customer, number)


def test_the_release_of_a_hold_does_not_end_the_rest(call, customer, other_customer, hold):
    (number,) = customer.numbers(1)
    available_at = released(call, customer, number)
    assert call.rpc("ReleaseHold", customer.key, id=hold([number])["id"]).body["data"]["numbers"] == [number]
    row = inventory_row(customer, number)
    assert (row["held_by"], row["hold_id"], row["free_at"][:19]) == (str(customer.id), None, available_at[:19])
    assert can_order(call, customer, number)
    assert not can_order(call, other_customer, number)


# ---------------------------------------------------------------- GetHold and ReleaseHold


def test_a_released_hold_frees_its_numbers_at_once(call, customer, other_customer, hold):
    numbers = list(reversed(customer.numbers(3)))
    data = hold(numbers)
    assert call(customer.key, numbers=numbers[:1]).status == 200
    response = call.rpc("ReleaseHold", customer.key, id=data["id"])
    assert_success(response, {"status": "released", "numbers": numbers[1:]})
    assert_not_found(call.rpc("ReleaseHold", customer.key, id=data["id"]))
    assert_not_found(call.rpc("GetHold", customer.key, id=data["id"]))
    for number in numbers[1:]:
        row = inventory_row(customer, number)
        assert (row["held_by"], row["free_at"], row["hold_id"]) == (None, None, None)
    assert call(other_customer.key, numbers=numbers[1:]).status == 200
    assert customer.owned() == {numbers[0]}


def test_a_released_hold_without_numbers_has_an_empty_list(call, customer, hold):
    numbers = customer.numbers(1)
    data = hold(numbers)
    assert call(customer.key, numbers=numbers).status == 200
    assert_success(call.rpc("ReleaseHold", customer.key, id=data["id"]), {"status": "released", "numbers": []})


def test_the_release_of_an_older_hold_keeps_the_numbers_of_a_newer_one(call, customer, other_customer, hold, kept):
    first, second = customer.numbers(2)
    old, new = hold([first, second]), hold([second])
    response = call.rpc("ReleaseHold", customer.key, id=old["id"])
    assert response.body["data"] == {"status": "released", "numbers": [first]}
    assert kept(new) == [second]
    assert (can_order(call, other_customer, first), can_order(call, other_customer, second)) == (True, False)


def test_the_release_of_a_hold_keeps_numbers_that_were_sold_and_released_since(call, customer, other_customer, hold):
    """Such a number rests. The old hold has no power over it."""
    (number,) = customer.numbers(1)
    data = hold([number])
    released(call, customer, number)
    response = call.rpc("ReleaseHold", customer.key, id=data["id"])
    assert response.body["data"] == {"status": "released", "numbers": []}
    assert not can_order(call, other_customer, number)


def test_a_hold_of_another_organization_looks_like_an_unknown_one(call, customer, other_customer, hold):
    data = hold(customer.numbers(1))
    before = all_rows(customer)
    for rpc in ("GetHold", "ReleaseHold"):
        for id_ in (data["id"], str(uuid4())):
            assert_not_found(call.rpc(rpc, other_customer.key, id=id_))
        assert_invalid(call.rpc(rpc, customer.key, id="x"), 400, id="must be a UUID")
    assert all_rows(customer) == before


def test_ids_may_have_capitals(call, customer, hold):
    data = hold(customer.numbers(1))
    assert UUID(data["id"]).version == 7
    assert_success(call.rpc("GetHold", customer.key, id=data["id"].upper()), data)
    assert call.rpc("ReleaseHold", customer.key, id=data["id"].upper()).status == 200


# ---------------------------------------------------------------- the limit


@pytest.fixture
def small(database, open_path):
    """A service with a low limit, and a customer of it."""
    limits = {"workers": 1, "held_numbers_max": HELD_MAX}
    settings = local_settings(open_path / ".data", database_url=database.url, **limits)
    with (
        Up(settings, open_path, "--no-demo") as up,
        httpx.Client(base_url=up.until_ready().rest_url, timeout=TIMEOUT_SECONDS) as client,
    ):
        yield Rest(client), Customer.open(database.engine)


def test_an_organization_holds_a_limited_number_of_numbers(small, database):
    call, customer = small
    numbers = customer.numbers(2 * HELD_MAX)
    message = f"limit exceeded: at most {HELD_MAX} numbers can be held"

    def hold(*numbers):
        return call.rpc("HoldNumbers", customer.key, numbers=numbers)

    def is_full():
        before = all_rows(customer)
        response = hold(numbers[-1])
        if response.status == 200:
            assert call.rpc("ReleaseHold", customer.key, id=response.body["data"]["id"]).status == 200
            return False
        assert_refused(response, 409, "LIMIT_EXCEEDED", message)
        assert all_rows(customer) == before
        return True

    assert_refused(hold(*numbers[: HELD_MAX + 1]), 409, "LIMIT_EXCEEDED", message)
    first = hold(*numbers[:2]).body["data"]
    assert hold(*numbers[2:HELD_MAX]).status == 200
    assert is_full()
    # A number that is held again counts once.
    assert hold(numbers[2]).status == 200
    assert hold(*numbers[:HELD_MAX]).status == 200
    assert is_full()
    # What is unavailable is named before the limit.
    assert_shortage(hold(numbers[-1], "+999000000000009"), 2, ["+999000000000009"])
    # The numbers have left their first hold.
    assert call.rpc("ReleaseHold", customer.key, id=first["id"]).body["data"]["numbers"] == []
    assert is_full()
    # An ordered number counts no more.
    assert call(customer.key, numbers=[numbers[0]]).status == 200
    assert not is_full()
    assert hold(numbers[-2]).status == 200
    assert is_full()
    # Other organizations have limits of their own.
    assert call.rpc("HoldNumbers", Customer.open(database.engine).key, numbers=[numbers[-1]], minutes=1).status == 200


def test_expired_holds_and_resting_numbers_do_not_count(small):
    call, customer = small
    numbers = customer.numbers(2 * HELD_MAX)
    assert call.rpc("HoldNumbers", customer.key, numbers=numbers[:HELD_MAX]).status == 200
    let_time_pass(customer, minutes=10)
    assert call.rpc("HoldNumbers", customer.key, numbers=numbers[HELD_MAX:]).status == 200
    rows = call(customer.key, numbers=numbers).body["data"]
    assert call.rpc("BulkReleaseNumbers", customer.key, ids=[row["id"] for row in rows]).status == 200
    assert call.rpc("HoldNumbers", customer.key, numbers=numbers[:HELD_MAX]).status == 200
    assert call.rpc("HoldNumbers", customer.key, numbers=numbers[HELD_MAX:]).status == 409
