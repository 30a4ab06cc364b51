"""ListNumbers: the pages of an organization's numbers, newest first, and its filters."""

import base64
import itertools
from uuid import UUID, uuid4

import pytest

from tests.support.customer import Customer
from tests.support.inventory import (
    assert_invalid,
    assert_success,
    new_area_code,
    stock,
    stored_number,
)

FIELDS = {"inbound_url": "https://example.com/in", "status_url": "https://example.com/s", "label": "é"}
NOTHING = {"limit": 20, "next_cursor": None}


@pytest.fixture
def order(call, customer):
    """Order numbers with the customer's key, and return the rows."""

    def order(numbers, **fields):
        response = call(customer.key, numbers=numbers, **fields)
        assert response.status == 200, response
        return response.body["data"]

    return order


@pytest.fixture
def found(call, customer):
    """The numbers of a list, in its order."""

    def found(**request):
        response = call.rpc("ListNumbers", customer.key, **request)
        assert response.status == 200, response
        return [row["number"] for row in response.body["data"]]

    return found


def page(call, key, limit, cursor, **filters):
    """The rows of a page, and the cursor of the next one."""
    response = call.rpc("ListNumbers", key, limit=limit, cursor=cursor, **filters)
    rows, next_cursor = response.body["data"], response.body["meta"]["next_cursor"]
    assert_success(response, rows, meta={"limit": limit, "next_cursor": next_cursor})
    assert len(rows) == limit if next_cursor else len(rows) <= limit
    return rows, next_cursor


def pages(call, key, limit, **filters):
    """All pages, one after the other."""
    cursor = None
    while True:
        rows, cursor = page(call, key, limit, cursor, **filters)
        yield rows
        if cursor is None:
            return


# ---------------------------------------------------------------- rows and pages


def test_the_newest_numbers_come_first(order, call, customer):
    kind = {"number_type": "toll_free", "sms_enabled": False, "mms_enabled": True}
    first = order(customer.numbers(1, **kind))
    second = order(customer.numbers(2), **FIELDS, campaign_id=str(customer.campaign()))
    rows = [*reversed(second), *first]
    assert_success(call.rpc("ListNumbers", customer.key), rows, meta=NOTHING)
    assert rows == [stored_number(customer, row["id"]) for row in rows]


def test_the_list_of_an_organization_without_numbers_is_empty(call, customer):
    assert_success(call.rpc("ListNumbers", customer.key), [], meta=NOTHING)


def test_a_page_has_twenty_numbers_unless_the_request_says_otherwise(order, call, customer):
    rows = list(reversed(order(customer.numbers(21))))
    response = call.rpc("ListNumbers", customer.key)
    cursor = response.body["meta"]["next_cursor"]
    assert_success(response, rows[:20], meta={"limit": 20, "next_cursor": cursor})
    assert isinstance(cursor, str)
    assert_success(call.rpc("ListNumbers", customer.key, cursor=cursor), rows[20:], meta=NOTHING)


def test_a_page_that_ends_with_the_last_number_has_no_cursor(order, call, customer):
    rows = list(reversed(order(customer.numbers(20))))
    assert_success(call.rpc("ListNumbers", customer.key, limit=20), rows, meta=NOTHING)


def test_pages_of_every_limit_have_each_number_once(order, call, customer, times):
    """A limit of 1 to 100, over 250 numbers."""
    rows = list(itertools.chain(*(order(customer.numbers(size)) for size in (100, 50, 1, 99))))[::-1]
    for limit in times([7, 50, 83, 100], range(1, 101)):
        assert list(itertools.chain(*pages(call, customer.key, limit))) == rows, limit


def test_inserts_and_releases_between_pages_repeat_and_skip_no_number(call, customer, times):
    """Pages of 1 to 100 numbers, over 250 numbers. Every third of them is released meanwhile."""
    for limit in times([11, 64, 100], range(1, 101)):
        lister = Customer.open(customer.engine)

        def order(size, key=lister.key):
            response = call(key, numbers=customer.numbers(size))
            return [row["id"] for row in response.body["data"]]

        ids = order(100) + order(100) + order(50)
        doomed = ids[1::3]
        seen = []
        for rows in pages(call, lister.key, limit):
            seen += [row["id"] for row in rows]
            order(2)
            # From both ends of the list, and the last one of this page.
            released = {*doomed[:3], *doomed[-3:], *([seen[-1]] if seen[-1] in doomed else [])}
            doomed = [id_ for id_ in doomed if id_ not in released]
            if released:
                assert call.rpc("BulkReleaseNumbers", lister.key, ids=[*released]).status == 200
        assert len(set(seen)) == len(seen)
        assert {*ids} - {*ids[1::3]} <= {*seen} <= {*ids}, limit


def test_the_cursor_of_a_number_that_was_released_still_works(order, call, customer):
    rows = list(reversed(order(customer.numbers(5))))
    _, cursor = page(call, customer.key, 2, None)
    assert call.rpc("ReleaseNumber", customer.key, id=rows[1]["id"]).status == 200
    assert page(call, customer.key, 2, cursor) == (rows[2:4], page(call, customer.key, 2, cursor)[1])
    assert page(call, customer.key, 3, cursor) == (rows[2:], None)


def test_a_released_number_is_not_listed_and_a_changed_one_keeps_its_place(order, call, customer, found):
    rows = order(customer.numbers(3))
    assert call.rpc("ReleaseNumber", customer.key, id=rows[2]["id"]).status == 200
    assert call.rpc("UpdateNumber", customer.key, id=rows[0]["id"], label="changed").status == 200
    assert found() == [rows[1]["number"], rows[0]["number"]]


def test_a_number_that_is_taken_back_is_the_newest(order, call, customer, found):
    first, second = order(customer.numbers(2))
    assert call.rpc("ReleaseNumber", customer.key, id=first["id"]).status == 200
    order([first["number"]])
    assert found() == [first["number"], second["number"]]


# ---------------------------------------------------------------- filters


def test_each_filter_selects_its_numbers(order, call, customer, other_customer, found):
    one, two = (str(customer.campaign()) for _ in range(2))
    in_one = order(customer.numbers(2), campaign_id=one, label="Front Desk")
    in_two = order(customer.numbers(1, number_type="toll_free"), campaign_id=two, label="front door")
    in_none = order(customer.numbers(1, number_type="short_code"))
    numbers = {"one": in_one, "two": in_two, "none": in_none}
    one_, two_, none_ = ([row["number"] for row in reversed(rows)] for rows in numbers.values())
    assert found(number_type="local") == one_
    assert found(number_type="toll_free") == two_
    assert found(number_type="short_code") == none_
    assert found(campaign_id=one) == found(campaign_id=one.upper()) == one_
    assert found(campaign_id=two) == two_
    assert found(campaign_id=str(uuid4())) == found(campaign_id=str(other_customer.campaign())) == []
    assert found(search="FRONT d") == two_ + one_
    assert found(search="desk") == one_
    assert found(search="front", number_type="local", campaign_id=one) == one_
    assert found(search="front", number_type="local", campaign_id=two) == []
    assert found(search=none_[0][3:]) == none_
    assert_success(call.rpc("ListNumbers", customer.key, search="nowhere"), [], meta=NOTHING)


def test_a_search_finds_any_part_of_the_number(order, customer, found):
    numbers = stock(customer, new_area_code(), 3)
    order(numbers)
    for i, j in itertools.combinations(range(len(numbers[1]) + 1), 2):
        part = numbers[1][i:j]
        assert found(search=part) == [number for number in reversed(numbers) if part in number], part


LABELS = ["100%", "100 %", "a_b", "axb", "a\\b", "a%b", "Ünïcödé", "ΑΒΓ", "it's", "(.*)", "[a]", "$1", "^x$"]


def test_the_text_of_a_search_has_no_wildcards(order, customer, found):
    numbers = {}
    for label in LABELS:
        (row,) = order(customer.numbers(1), label=label)
        numbers[label] = row["number"]
    for text in ("%", "_", "\\", "a%b", "a_b", ".*", "[a]", "$", "^x$", "'", "100%", "%%", "__", "\\%"):
        expected = [numbers[label] for label in reversed(LABELS) if text in label]
        assert found(search=text) == expected, text


def test_a_search_ignores_the_case_of_the_label(order, customer, found):
    for label, texts in {
        "Ünïcödé": ("ünïcödé", "ÜNÏCÖDÉ", "cöD"),
        "ΑΒΓ": ("αβγ", "Βγ"),
        "Front DESK": ("front desk", "FRONT DESK", "t d"),
    }.items():
        (row,) = order(customer.numbers(1), label=label)
        for text in texts:
            assert found(search=text) == [row["number"]], text


def test_a_number_leaves_a_filter_when_it_changes(order, call, customer, found):
    one = str(customer.campaign())
    (row,) = order(customer.numbers(1), label="before", campaign_id=one)
    assert call.rpc("DetachCampaign", customer.key, id=row["id"]).status == 200
    assert call.rpc("UpdateNumber", customer.key, id=row["id"], label="after").status == 200
    assert (found(campaign_id=one), found(search="before"), found(search="after")) == ([], [], [row["number"]])


def test_filters_go_on_over_pages(order, call, customer):
    rows = [order(customer.numbers(1), label=f"{'odd' if i % 2 else 'even'} {i}")[0] for i in range(12)]
    listed = list(itertools.chain(*pages(call, customer.key, 2, search="ODD")))
    assert listed == rows[::-1][::2]


def test_a_list_without_a_filter_by_null(rest, order, customer):
    """Parameters of no value are absent."""
    row = order(customer.numbers(1))
    names = ("limit", "cursor", "number_type", "campaign_id", "search")
    assert rest.rpc("ListNumbers", customer.key, **dict.fromkeys(names)).body["data"] == row


# ---------------------------------------------------------------- other organizations


def test_the_numbers_of_another_organization_are_never_listed(order, call, customer, other_customer, found):
    order(customer.numbers(3), label="front desk")
    other_rows = call(other_customer.key, numbers=other_customer.numbers(3), label="front desk").body["data"]
    campaign_id = str(other_customer.campaign())
    assert call.rpc("AttachCampaign", other_customer.key, id=other_rows[0]["id"], campaign_id=campaign_id).status == 200
    others = {row["number"] for row in other_rows}
    for request in ({}, {"search": "front"}, {"search": "+1900"}, {"number_type": "local"}):
        assert len(found(**request)) == 3
        assert others.isdisjoint(found(**request))
    assert found(search=other_rows[0]["number"]) == found(campaign_id=campaign_id) == []


def cursor_of(id_):
    return base64.urlsafe_b64encode(UUID(id_).bytes).decode().rstrip("=")


def test_a_cursor_of_another_organization_shows_nothing_of_it(order, call, customer, other_customer):
    """It is only a place in the time at which numbers are assigned, whoever has them."""
    older = order(customer.numbers(2))
    others = call(other_customer.key, numbers=other_customer.numbers(3)).body["data"]
    order(customer.numbers(2))
    _, cursor = page(call, other_customer.key, 1, None)
    assert cursor == cursor_of(others[-1]["id"])
    assert page(call, customer.key, 100, cursor) == (older[::-1], None)
    assert page(call, customer.key, 1, cursor) == (older[1:], cursor_of(older[1]["id"]))


def test_a_made_up_cursor_is_a_place_in_the_list(order, call, customer):
    rows = order(customer.numbers(2))
    assert page(call, customer.key, 5, "A" * 22) == ([], None)
    assert page(call, customer.key, 5, "_" * 21 + "w") == (rows[::-1], None)
    # Its last character has four bits that mean nothing.
    assert page(call, customer.key, 5, "-" + "_" * 21) == (rows[::-1], None)


# ---------------------------------------------------------------- refusals

RULES = {
    "limit": ([0, 101, 2**32 - 1], "must be 1..100"),
    "cursor": (["", "x", "A" * 21, "A" * 23, "A" * 20 + "==", "A" * 21 + "+"], "must be the next_cursor of a response"),
    "number_type": (["", "Local", "mobile"], "must be local, toll_free or short_code"),
    "campaign_id": (["", "x", "%"], "must be a UUID"),
    "search": (["", "x" * 256, "a\nb", "\x7f"], "must be 1..255 chars"),
}


def test_a_parameter_that_breaks_its_rule_is_422(call, customer):
    for name, (values, rule) in RULES.items():
        for value in values:
            assert_invalid(call.rpc("ListNumbers", customer.key, **{name: value}), **{name: rule})


def test_422_lists_all_violations(call, customer):
    wrong = {name: values[0] for name, (values, _) in RULES.items()}
    assert_invalid(call.rpc("ListNumbers", customer.key, **wrong), **{name: rule for name, (_, rule) in RULES.items()})


def test_the_longest_search_is_allowed(order, customer, found):
    (row,) = order(customer.numbers(1), label="é" * 255)
    assert found(search="É" * 255) == [row["number"]]
