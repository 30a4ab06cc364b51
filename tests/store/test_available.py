"""A number is available by the same rule in SQL (store/tables.py), in Python (rules/ordering.py) and in searches."""

from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID

import pytest
from sqlalchemy import literal, select, text

from server.rules import ordering
from server.rules.values import Criteria, Number
from server.store import operator_numbers
from server.store.bulk_orders import LOCK_CHOSEN
from server.store.statements import array
from server.store.tables import Instant, is_available, phone_number

ORGANIZATION, OTHER, ASSIGNMENT = (UUID(int=i) for i in (1, 2, 3))
NOW = datetime(2030, 1, 1, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
STATES = {
    f"+1415555{i:04}": state
    for i, state in enumerate(
        product(
            [None, ASSIGNMENT],  # assignment_id
            [None, ORGANIZATION, OTHER],  # held_by
            [None, NOW - MOMENT, NOW, NOW + MOMENT],  # free_at
        )
    )
}


@pytest.fixture
def connection(database):
    """A connection that sees a number in each state. The numbers are never committed."""
    with database.engine.connect() as connection:
        # It forbids some of the states. The two rules must agree on those too.
        connection.execute(text("ALTER TABLE phone_number DROP CONSTRAINT phone_number_one_state"))
        row = {"number_type": "local", "sms_enabled": True, "mms_enabled": True, "price_micros": 0}
        rows = [
            {"number": number, "assignment_id": assignment_id, "held_by": held_by, "free_at": free_at, **row}
            for number, (assignment_id, held_by, free_at) in STATES.items()
        ]
        connection.execute(phone_number.insert(), rows)
        yield connection


def available_by_sql(connection, organization_id=None):
    query = select(phone_number.c.number, is_available(organization_id, now=literal(NOW, Instant)))
    return dict(connection.execute(query).all())


def available_by_rule(organization_id):
    rows = {number: Number("local", True, True, 0, *state) for number, state in STATES.items()}
    return {number: ordering.is_available(row, organization_id, NOW) for number, row in rows.items()}


def test_sql_and_rule_agree_for_an_organization_that_numbers_are_held_for(connection):
    expected = available_by_rule(ORGANIZATION)
    assert set(expected.values()) == {True, False}
    assert available_by_sql(connection, ORGANIZATION) == expected


def test_sql_without_an_organization_agrees_with_the_rule_for_one_that_no_number_is_held_for(connection):
    expected = available_by_rule(UUID(int=4))
    assert expected != available_by_rule(ORGANIZATION)
    assert available_by_sql(connection) == expected


def test_sql_compares_with_the_current_time_and_not_with_the_start_of_the_transaction(connection):
    (number,) = (number for number, state in STATES.items() if state == (None, None, NOW))
    is_this = phone_number.c.number == number
    connection.execute(phone_number.update().where(is_this).values(free_at=text("clock_timestamp()")))
    assert connection.execute(select(is_available()).where(is_this)).scalar_one() is True


# ---------------------------------------------------------------- searches and bulk orders


@pytest.fixture
def available_now(connection):
    """The numbers that are available to all, once `free_at` of each is a day ago or in a day."""
    day = "clock_timestamp() + CASE WHEN free_at > :now THEN interval '1 day' ELSE interval '-1 day' END"
    connection.execute(text(f"UPDATE phone_number SET free_at = {day} WHERE free_at IS NOT NULL"), {"now": NOW})
    found = set(connection.execute(select(phone_number.c.number).where(is_available())).scalars())
    assert 0 < len(found) < len(STATES)
    return found


@pytest.mark.parametrize(
    "criteria", [Criteria(area_code="415"), Criteria(pattern="5555")], ids=["in order", "by index"]
)
def test_a_search_finds_exactly_the_numbers_that_every_organization_can_order(connection, available_now, criteria):
    found = operator_numbers.search(connection, criteria, 100)
    assert {each.number for each in found} == available_now


def test_a_bulk_order_chooses_only_from_the_numbers_that_every_organization_can_order(connection, available_now):
    parameters = {"numbers": array(STATES), "rows": "100"}
    chosen = connection.execute(text(LOCK_CHOSEN.named_sql), parameters)
    assert {row.number for row in chosen} == available_now
