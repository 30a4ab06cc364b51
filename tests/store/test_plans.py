"""Among 200,000 numbers each statement uses the indexes that it was written for, and reads few pages."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from server.config import Settings
from server.rules.values import Choose, Criteria, EndHold, Hold, Release, Route, Routing
from server.store import assignments, bulk_orders, holds, orders, queries, searches, writes
from server.store.connection import connect
from server.store.queries import Caller, Page
from server.store.searches import Search, search
from server.store.statements import array
from tests.store.large import fill, indexes, pages_read, plan_of, tables_read_whole
from tests.support.databases import Database, drop_database, new_database
from tests.support.inventory import add, values_of
from tests.support.orders import order_of
from tests.support.writes import write_of

STATEMENTS = {s.name: s for s in (*orders.STATEMENTS, *writes.STATEMENTS, *queries.STATEMENTS, *searches.STATEMENTS)}
PAGE = Page(20, "", "", "", "")
IDS = "SELECT id::text FROM {} WHERE organization_id = :id LIMIT 100"


@pytest.fixture(scope="module")
def large(postgres):
    """A large database, a customer in it, and what the customer has there. The tests change nothing."""
    name = new_database(postgres)
    database = Database.at(postgres.url(name))
    customer = fill(database)
    caller = Caller(str(customer.id), str(customer.key_id), "numbers:read")
    ids = {table: values_of(customer, IDS.format(table), id=customer.id) for table in ("assignment", "orders", "hold")}
    numbers = tuple(f"+1305555{i}" for i in range(2000, 2200, 2))
    yield SimpleNamespace(
        database=database,
        customer=customer,
        caller=caller,
        numbers=numbers,
        assignment_ids=tuple(ids["assignment"]),
        order_id=ids["orders"][0],
        hold=write_of(customer, Hold(numbers, 10, 1000)),
        end_hold=write_of(customer, EndHold(ids["hold"][0])),
        route=write_of(customer, Route(ids["assignment"][0], {})),
        release=write_of(customer, Release(tuple(ids["assignment"]), 0, is_bulk=True)),
        bulk_order=write_of(customer, Choose(100, Criteria(), (), Routing(), proposed=numbers)),
    )
    drop_database(postgres, name)


def searching(rows=10, **criteria):
    return lambda large: search(Search(large.caller.api_key_id, Criteria(**criteria), rows))


def listing(**page):
    return lambda large: queries.list_numbers(large.caller, PAGE._replace(**page))


def of_order(large, *, has_key=False):
    order = order_of(large.customer, *large.numbers)
    (numbers, *_) = orders._reads([order]).values()
    return numbers


KEY, NUMBER, ASSIGNMENT, HOLD = "api_key_pkey", "phone_number_pkey", "assignment_pkey", "hold_pkey"
ORDER = {KEY, ASSIGNMENT, NUMBER, "orders_pkey", "idempotency_key_pkey", "number_event_pkey"}
BY_CLASS, BY_DIGITS = {KEY, "phone_number_search", NUMBER}, {KEY, "phone_number_digits"}
READS = {
    "a search": (searching(), BY_CLASS, 800),
    "a search in an area": (searching(area_code="305"), BY_CLASS, 800),
    "a search for many": (searching(rows=300, area_code="305"), BY_CLASS, 1500),
    "a search that finds nothing": (searching(number_type="short_code"), BY_CLASS, 100),
    "a search in an area that does not exist": (searching(area_code="200"), BY_CLASS, 200),
    "a search for few digits": (searching(pattern="55"), BY_CLASS, 800),
    "a search for several digits": (searching(pattern="51234"), BY_DIGITS, 200),
    "a search for several digits in an area": (searching(area_code="305", pattern="51234"), BY_DIGITS, 200),
    "a list": (listing(), {KEY, ASSIGNMENT, NUMBER}, 200),
    "a list from a cursor": (listing(cursor="AZAAAAAAcACAAAAAAAABkA"), {KEY, ASSIGNMENT, NUMBER}, 200),
    "a number": (lambda it: queries.get_number(it.caller, it.assignment_ids[0]), {KEY, ASSIGNMENT, NUMBER}, 30),
    "an order": (lambda it: queries.get_order(it.caller, id_=it.order_id), ORDER, 50),
    "an order by its key": (lambda it: queries.get_order(it.caller, idempotency_key=it.order_id), ORDER, 50),
    "a hold": (lambda it: queries.get_hold(it.caller, it.end_hold.action.hold_id), {KEY, HOLD, NUMBER}, 20),
    "numbers to check": (lambda it: queries.READ_NUMBERS(numbers=array(it.numbers)), {NUMBER}, 500),
    "locks of an order": (of_order, {NUMBER}, 700),
    "locks of a hold": (lambda it: holds.MAKE.lock(it.hold)["numbers"], {NUMBER}, 700),
    "the count of held numbers": (
        lambda it: holds.MAKE.read(it.hold)["rows"],
        {"hold_expires_at", NUMBER},
        500,
    ),
    "locks of the end of a hold": (lambda it: holds.END.lock(it.end_hold)["locked"], {HOLD, NUMBER}, 20),
    "the end of a hold": (lambda it: holds.END.read(it.end_hold)["rows"], {HOLD, NUMBER}, 20),
    "a change": (lambda it: assignments.ROUTE.read(it.route)["rows"], {ASSIGNMENT, NUMBER}, 20),
    "locks of releases": (lambda it: assignments.RELEASE.lock(it.release)["locked"], {ASSIGNMENT, NUMBER}, 1500),
    "releases": (lambda it: assignments.RELEASE.read(it.release)["rows"], {ASSIGNMENT, NUMBER}, 1000),
    "locks of a bulk order": (lambda it: bulk_orders.CHOOSE.lock(it.bulk_order)["numbers"], {NUMBER}, 700),
}
"""By name, a statement, the indexes that it uses, and how many pages it may read."""


@pytest.mark.parametrize("name", READS)
def test_a_statement_uses_its_indexes_and_reads_few_pages(large, name):
    make, expected, pages_max = READS[name]
    bound = make(large)
    plan = plan_of(large.database, STATEMENTS[bound.name], bound, run=True)
    assert (indexes(plan), tables_read_whole(plan)) == (expected, set())
    assert pages_read(plan) <= pages_max


def test_a_list_reads_only_its_page_while_the_database_knows_nothing_about_its_table(large):
    """So it is after an import or an upgrade, until the first ANALYZE."""
    with large.database.engine.begin() as connection:
        connection.execute(text("DELETE FROM pg_statistic WHERE starelid = 'assignment'::regclass"))
        connection.execute(text("UPDATE pg_class SET reltuples = -1 WHERE oid = 'assignment'::regclass"))
    try:
        plan = plan_of(large.database, queries.LIST_NUMBERS, listing()(large), run=True)
    finally:
        with large.database.engine.begin() as connection:
            connection.execute(text("ANALYZE assignment"))
    assert pages_read(plan) <= 200


def test_writes_find_their_rows_by_primary_keys(large):
    at = "2030-01-01T00:00:00Z"
    rows = writes.STEPS
    held = SimpleNamespace(numbers=large.numbers, expires_at=SimpleNamespace(isoformat=lambda: at))
    ended = SimpleNamespace(hold_id=large.end_hold.action.hold_id, numbers=large.numbers)
    bounds = [*rows[Hold].write(large.hold, held, at), *rows[EndHold].write(large.end_hold, ended, at)]
    for bound in bounds:
        plan = plan_of(large.database, STATEMENTS[bound.name], bound)
        assert tables_read_whole(plan) == set()
        assert indexes(plan) <= {NUMBER, HOLD}


# ---------------------------------------------------------------- the random start


def found_by(large, statements):
    """The numbers that each of these searches finds."""

    async def run():
        connection = await connect(large.database.url, Settings(), searches.STATEMENTS)
        try:
            return [[row[1] for row in result.rows] for result in await connection.run(*statements)]
        finally:
            await connection.close()

    return asyncio.run(run())


def starts(large, count, **criteria):
    """The first number that each of many searches finds."""
    return [numbers[0] for numbers in found_by(large, [searching(**criteria)(large) for _ in range(count)])]


def test_searches_start_everywhere(large):
    of_class = {"number_type": "local", "sms_enabled": True, "mms_enabled": False}
    counts = Counter(number[:5] for number in starts(large, 400, **of_class) if number.startswith("+13"))
    assert len(counts) == 20
    # Ten area codes have 0 there and ten have 1. The digits 2 to 9 lead to both.
    assert 0.25 < sum(counts[f"+130{i}"] for i in range(10)) / counts.total() < 0.75
    found = starts(large, 400, area_code="305", **of_class)
    assert len(set(found)) > 300
    counts = Counter(number[8] for number in found)
    assert len(counts) == 10
    assert max(counts.values()) < 100  # 40 on average


def test_searches_start_everywhere_in_blocks_with_gaps_between_them(large):
    """Most random numbers are in a gap, and the next number after a gap must not be the start of them all."""
    add(large.customer.engine, [f"+1298{first + i}" for first in (2_345_000, 7_770_000) for i in range(1000)])
    counts = Counter(number[:-2] for number in starts(large, 400, area_code="298"))
    assert len(counts) == 20
    assert max(counts.values()) < 70  # 20 on average


def test_a_search_goes_round_and_finds_what_is_free_before_its_start(large):
    add(
        large.customer.engine,
        [f"+12972000{i}" for i in range(100, 1000)],
        free_at=datetime.now(UTC) + timedelta(days=1),
    )
    free = set(add(large.customer.engine, ["+12972000000", "+12972000001", "+12972001000"]))
    for _ in range(30):
        assert set(found_by(large, [searching(area_code="297")(large)])[0]) == free


def test_a_lone_number_is_not_the_start_of_most_searches(large):
    """The next numbers after it would be in the results of all of them."""
    add(large.customer.engine, ["+12012000000"])
    found = starts(large, 400, number_type="local", sms_enabled=True, mms_enabled=False)
    assert found.count("+12012000000") < 200
