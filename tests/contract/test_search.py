"""SearchNumbers: which numbers it finds, by what, and that it shows and reserves none that others could not order."""

import pytest

from tests.support.inventory import (
    add,
    assert_invalid,
    assert_success,
    available_row,
    inventory_row,
    let_time_pass,
    new_area_code,
    stock,
    success,
)

UNUSED = "199"
"""An area code without numbers."""


@pytest.fixture
def area():
    return new_area_code()


@pytest.fixture
def search(call, customer):
    """Search with the customer's key, and return the numbers that were found, in ascending order."""

    def search(**criteria):
        response = call.rpc("SearchNumbers", customer.key, **criteria)
        assert response.status == 200, response
        found = [row["number"] for row in response.body["data"]]
        assert len(set(found)) == len(found)
        return sorted(found)

    return search


def by_number(response):
    return {**response.body, "data": sorted(response.body["data"], key=lambda row: row["number"])}


# ---------------------------------------------------------------- what a response has


def test_each_row_has_what_the_number_is_and_costs(call, customer, area):
    kinds = [
        ({}, {}),
        ({"number_type": "toll_free", "price_micros": 0}, {"number_type": "toll_free", "price": "0.00"}),
        ({"sms_enabled": False, "price_micros": 150_000}, {"sms_enabled": False, "price": "0.15"}),
        ({"mms_enabled": True, "price_micros": 1}, {"mms_enabled": True, "price": "0.000001"}),
        ({"number_type": "short_code", "price_micros": 10**12}, {"number_type": "short_code", "price": "1000000.00"}),
    ]
    rows = [available_row(*stock(customer, area, **columns), **row) for columns, row in kinds]
    response = call.rpc("SearchNumbers", customer.key, area_code=area)
    assert (response.status, by_number(response)) == (200, success(rows))


def test_a_search_that_finds_nothing_returns_an_empty_list(call, customer):
    assert_success(call.rpc("SearchNumbers", customer.key, area_code=UNUSED), [])
    # This pattern has an index of its own.
    assert_success(call.rpc("SearchNumbers", customer.key, pattern="123456789012345"), [])


def test_a_search_without_criteria_finds_ten_numbers(search, customer):
    customer.numbers(12)
    assert len(search()) == 10


def test_a_search_finds_as_many_as_it_asks_for(search, customer, area):
    numbers = stock(customer, area, 101)
    for quantity in (1, 99, 100):
        found = search(area_code=area, quantity=quantity)
        assert len(found) == quantity
        assert set(found) < set(numbers)


def test_numbers_that_were_shown_before_are_shown_again(search, customer, area):
    numbers = stock(customer, area, 3)
    assert [search(area_code=area) for _ in range(4)] == [numbers] * 4


# ---------------------------------------------------------------- criteria


def test_a_search_by_area_code_finds_only_numbers_that_begin_with_it(search, customer, area):
    own = stock(customer, area)
    other = new_area_code()
    # The digits are elsewhere in these.
    add(customer.engine, [f"+1{other}{area}0000", f"+{area}15550000", f"+44{area}5550000"])
    assert search(area_code=area) == own


def test_a_search_by_type(search, customer, area):
    numbers = {each: stock(customer, area, number_type=each) for each in ("local", "toll_free", "short_code")}
    for number_type, expected in numbers.items():
        assert search(area_code=area, number_type=number_type) == expected


def test_a_number_that_is_only_the_area_code_is_found_with_those_that_begin_with_it(search, customer, area):
    """Such as the short code +1911."""
    short = f"+1{area}"
    add(customer.engine, [short], number_type="short_code")
    assert search(area_code=area) == search(area_code=area, number_type="short_code") == [short]
    (longer,) = add(customer.engine, [f"{short}00"], number_type="short_code")
    for _ in range(20):  # each starts at a random number
        assert search(area_code=area) == [short, longer]


@pytest.mark.parametrize("name", ["sms_enabled", "mms_enabled"])
def test_a_search_by_capability(search, customer, area, name):
    numbers = {each: stock(customer, area, **{name: each}) for each in (True, False)}
    for wanted, expected in numbers.items():
        assert search(area_code=area, **{name: wanted}) == expected
    assert search(area_code=area) == numbers[True] + numbers[False]


def patterns_in(number):
    """Each text of digits that is in the number, at most 15 long."""
    digits = number.removeprefix("+")
    return {digits[i:j] for i in range(len(digits)) for j in range(i + 1, min(len(digits), i + 15) + 1)}


def test_a_search_by_pattern_finds_it_anywhere_in_the_number(search, customer, area):
    """Also across the end of the area code."""
    numbers = stock(customer, area, 3)
    for pattern in patterns_in(numbers[1]):
        expected = [number for number in numbers if pattern in number]
        assert search(area_code=area, pattern=pattern) == expected, pattern
        if len(pattern) > 8:
            assert search(pattern=pattern) == expected, pattern


def test_the_longest_pattern_is_a_whole_number(search, customer, area):
    number = f"+{area}123456789012"
    add(customer.engine, [number])
    assert search(pattern=number[1:]) == [number]
    assert search(pattern=f"{number[1:-1]}0") == []


def test_numbers_of_other_countries_are_found_by_pattern(search, customer, area):
    number = f"+4930{area}55501"
    add(customer.engine, [number])
    assert search(pattern=f"4930{area}") == [number]
    assert search(pattern=f"30{area}", area_code=area) == []


def test_a_search_by_all_criteria_needs_all_of_them(search, customer, area):
    wanted = {"number_type": "toll_free", "sms_enabled": False, "mms_enabled": True}
    (number,) = stock(customer, area, **wanted)
    for other in ({"number_type": "local"}, {"sms_enabled": True}, {"mms_enabled": False}):
        stock(customer, area, **(wanted | other))
    stock(customer, new_area_code(), **wanted)
    criteria = {"area_code": area, "pattern": number[-5:], **wanted, "quantity": 100}
    assert search(**criteria) == [number]
    assert search(**criteria | {"pattern": number[-2:]}) == [number]
    assert search(**criteria | {"pattern": "0000000"}) == []


# ---------------------------------------------------------------- which numbers are shown


def test_a_search_finds_only_what_every_organization_can_order(search, call, customer, other_customer, area):
    held, held_by_other, sold, resting, resting_of_other, free = stock(customer, area, 6)
    stock(customer, area, free_at="2999-01-01T00:00:00Z")
    assert call.rpc("HoldNumbers", customer.key, numbers=[held]).status == 200
    assert call.rpc("HoldNumbers", other_customer.key, numbers=[held_by_other]).status == 200
    assert call(other_customer.key, numbers=[sold]).status == 200
    for owner, number in ((customer, resting), (other_customer, resting_of_other)):
        (row,) = call(owner.key, numbers=[number]).body["data"]
        assert call.rpc("ReleaseNumber", owner.key, id=row["id"]).status == 200
    # Short and long patterns use different indexes.
    for criteria in ({}, {"pattern": "2"}, {"pattern": free[1:8]}):
        assert search(area_code=area, **criteria) == [free]
    assert search(pattern=held[1:]) == search(pattern=resting[1:]) == search(pattern=sold[1:]) == []


def test_a_number_is_found_again_when_its_hold_expires(search, call, customer, other_customer, area):
    (number,) = stock(customer, area)
    assert call.rpc("HoldNumbers", other_customer.key, numbers=[number], minutes=30).status == 200
    let_time_pass(other_customer, minutes=29)
    assert search(area_code=area) == search(pattern=number[1:]) == []
    let_time_pass(other_customer, minutes=1)
    assert search(area_code=area) == search(pattern=number[1:]) == [number]


def test_a_number_is_found_again_when_its_rest_ends(search, call, customer, other_customer, area):
    (number,) = stock(customer, area)
    (row,) = call(other_customer.key, numbers=[number]).body["data"]
    assert call.rpc("ReleaseNumber", other_customer.key, id=row["id"]).status == 200
    let_time_pass(other_customer, days=29, hours=23)
    assert search(area_code=area) == search(pattern=number[1:]) == []
    let_time_pass(other_customer, hours=1)
    assert search(area_code=area) == search(pattern=number[1:]) == [number]


def test_a_number_is_found_again_when_its_hold_is_released(search, call, customer, area):
    numbers = stock(customer, area, 2)
    hold = call.rpc("HoldNumbers", customer.key, numbers=numbers).body["data"]
    assert search(area_code=area) == []
    assert call.rpc("ReleaseHold", customer.key, id=hold["id"]).status == 200
    assert search(area_code=area) == numbers


def test_a_search_reserves_nothing(search, call, customer, other_customer, area):
    (number,) = stock(customer, area)
    before = inventory_row(customer, number)
    assert search(area_code=area) == [number]
    assert inventory_row(customer, number) == before
    assert call(other_customer.key, numbers=[number]).status == 200


def test_an_ordered_number_is_not_found_by_any_worker(rest, customer, area):
    first, second = stock(customer, area, 2)
    assert rest(customer.key, numbers=[first]).status == 200
    for _ in range(10):  # the edge sends the searches to all workers
        (row,) = rest.rpc("SearchNumbers", customer.key, area_code=area).body["data"]
        assert row["number"] == second


# ---------------------------------------------------------------- refusals

AREA_CODE, TYPE = "must be 3 digits", "must be local, toll_free or short_code"
PATTERN, QUANTITY = "must be 1..15 digits", "must be 1..100"


BROKEN_RULES = [
    ("area_code", ["", "41", "4155", "41a", "+41", "415 ", " 415", "415\n", "٤١٥", "%%%"], AREA_CODE),
    ("number_type", ["", "Local", "mobile", "local "], TYPE),
    ("pattern", ["", "x", "+1", "1 2", "1%", "_", "1234567890123456", "12\n"], PATTERN),
    ("quantity", [0, 101, 2**32 - 1], QUANTITY),
]


def test_a_field_that_breaks_its_rule_is_422(call, customer):
    for name, values, rule in BROKEN_RULES:
        for value in values:
            assert_invalid(call.rpc("SearchNumbers", customer.key, **{name: value}), **{name: rule})


def test_422_lists_all_violations(call, customer):
    wrong = {"area_code": "1", "number_type": "x", "pattern": "x", "quantity": 101}
    rules = {"area_code": AREA_CODE, "number_type": TYPE, "pattern": PATTERN, "quantity": QUANTITY}
    assert_invalid(call.rpc("SearchNumbers", customer.key, **wrong), **rules)


def test_null_counts_as_absent(rest, customer, area):
    numbers = stock(customer, area, 11)
    absent = dict.fromkeys(("number_type", "pattern", "sms_enabled", "mms_enabled", "quantity"))
    response = rest.rpc("SearchNumbers", customer.key, area_code=area, **absent)
    assert len(response.body["data"]) == 10
    assert {row["number"] for row in response.body["data"]} < set(numbers)


def test_a_search_needs_no_credit(call, customer, area):
    numbers = stock(customer, area)
    assert_success(call.rpc("SearchNumbers", customer.poor().key, area_code=area), [available_row(*numbers)])
