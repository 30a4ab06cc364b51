"""The check finds each kind of damage, and nothing else. Orders that run at the same time cause no findings."""

from dataclasses import replace
from itertools import cycle, islice

import pytest
from sqlalchemy import event, text
from uuid_utils.compat import uuid7

from server.store import check
from server.store.check import violations
from server.store.engine import admin_engine
from tests.admin.conftest import COUNT_1, COUNT_3, NO_COUNT, RELEASE, REST, SELL, TWO_MORE_NUMBERS, sale_of, sell
from tests.support.customer import CREDIT_MICROS, Customer
from tests.support.stack import wait_until

BALANCE_AFTER_ONE_ORDER = CREDIT_MICROS - 1_000_000
UNASSIGN = "UPDATE phone_number SET assignment_id = NULL WHERE number = :number"


def test_an_empty_database_has_no_violations(damaged):
    assert violations(damaged.engine) == []


# ---------------------------------------------------------------- numbers and assignments


def test_a_number_with_two_live_assignments_is_found(damage, sold):
    second = uuid7()
    found = damage(
        "DROP INDEX assignment_one_live_per_number",
        """
        INSERT INTO assignment (organization_id, id, order_id, number, price_micros, created_at, updated_at)
        VALUES (:organization, :second, :order, :number, 0, now(), now())
        """,
        second=second,
    )
    assert found == [
        f"number {sold['number']} has 2 live assignments",
        f"assignment {second} is live, but its number {sold['number']} refers to assignment {sold['assignment']}",
        f"order {sold['order']} has 1 numbers but 2 assignments",
    ]


def test_a_number_that_refers_to_an_unknown_assignment_is_found(damage, sold):
    other = uuid7()
    assert damage("UPDATE phone_number SET assignment_id = :other WHERE number = :number", other=other) == [
        f"number {sold['number']} refers to assignment {other}, which is not a live assignment of it",
        f"assignment {sold['assignment']} is live, but its number {sold['number']} refers to assignment {other}",
    ]


def test_a_sold_number_that_refers_to_no_assignment_is_found(damage, sold):
    assert damage(UNASSIGN) == [
        f"assignment {sold['assignment']} is live, but its number {sold['number']} refers to no assignment"
    ]


def test_a_number_that_refers_to_a_released_assignment_is_found(damage, sold):
    assert damage(*RELEASE) == [
        f"number {sold['number']} refers to assignment {sold['assignment']}, which is not a live assignment of it"
    ]


def test_a_released_number_is_no_violation(damage):
    assert damage(*RELEASE, REST) == []


def test_an_assignment_of_a_missing_number_is_found(damage, sold):
    assert damage("DELETE FROM phone_number WHERE number = :number") == [
        f"assignment {sold['assignment']} has number {sold['number']}, which is not in the inventory"
    ]


def test_an_assignment_with_an_order_of_another_organization_is_found(damage, sold):
    other = uuid7()
    found = damage("UPDATE assignment SET organization_id = :other WHERE id = :assignment", other=other)
    assert found == [
        f"assignment {sold['assignment']} belongs to order {sold['order']}, which organization {other} does not have",
        f"order {sold['order']} has no assignments",
    ]


def test_an_assignment_with_a_campaign_of_another_organization_is_found(damage, sold):
    campaign = uuid7()
    assert damage("UPDATE assignment SET campaign_id = :campaign WHERE id = :assignment", campaign=campaign) == [
        f"assignment {sold['assignment']} belongs to campaign {campaign}, "
        f"which organization {sold['organization']} does not have"
    ]


# ---------------------------------------------------------------- orders and their rows


def test_an_order_without_assignments_is_found(damage, sold):
    assert damage("DELETE FROM assignment WHERE id = :assignment", UNASSIGN) == [
        f"order {sold['order']} has no assignments"
    ]


def test_an_order_of_three_numbers_with_two_assignments_is_found(damage, sold):
    assert damage(*COUNT_3, *TWO_MORE_NUMBERS[:1]) == [f"order {sold['order']} has 3 numbers but 2 assignments"]


def test_an_order_of_three_numbers_with_three_assignments_is_no_violation(damage):
    assert damage(*COUNT_3, *TWO_MORE_NUMBERS) == []


def test_an_order_is_found_if_its_total_and_its_ledger_entry_are_wrongly_zero(damage, sold):
    found = damage(
        "UPDATE orders SET total_micros = 0 WHERE id = :order",
        "UPDATE ledger_entry SET amount_micros = 0 WHERE order_id = :order",
        "UPDATE ledger_entry SET balance_micros = balance_micros + 1000000 WHERE entry_no > 1",
        "UPDATE organization SET balance_micros = balance_micros + 1000000",
    )
    assert found == [f"order {sold['order']} has a total of 0 micros, but its numbers cost 1000000"]


def test_an_assignment_without_a_price_is_found_if_its_order_has_a_count(damage, sold):
    assert damage("UPDATE assignment SET price_micros = NULL WHERE id = :assignment") == [
        f"order {sold['order']} has a total of 1000000 micros, but its numbers cost 0"
    ]


def test_an_order_without_a_count_may_have_any_number_of_assignments(damage):
    assert damage(*NO_COUNT) == []
    assert damage(*TWO_MORE_NUMBERS, *NO_COUNT) == []


def test_an_order_without_a_count_and_without_assignments_is_found(damage, sold):
    found = damage(*NO_COUNT, "DELETE FROM assignment WHERE id = :assignment", UNASSIGN)
    assert found == [f"order {sold['order']} has no assignments"]


ASSIGNMENT_IDS_BEFORE_ORDER_IDS = (
    "UPDATE assignment SET id = ('00000000' || right(id::text, -8))::uuid",
    "UPDATE phone_number SET assignment_id = ('00000000' || right(assignment_id::text, -8))::uuid",
)


@pytest.mark.parametrize("count", [COUNT_3, NO_COUNT], ids=["with count", "without count"])
def test_assignments_are_matched_if_their_ids_sort_before_those_of_their_orders(damage, count):
    assert damage(*TWO_MORE_NUMBERS, *count, *ASSIGNMENT_IDS_BEFORE_ORDER_IDS) == []


@pytest.mark.parametrize("count", [COUNT_1, NO_COUNT], ids=["with count", "without count"])
def test_the_work_is_linear_in_the_rows_whatever_the_order_of_their_ids(damaged, count):
    customer, orders = Customer.open(damaged.engine), 300
    for number in customer.numbers(orders):
        sell(customer, number)
    with damaged.engine.begin() as connection:
        for statement in (*ASSIGNMENT_IDS_BEFORE_ORDER_IDS, *count):
            connection.execute(text(statement))
    before = assignments_read(damaged)
    assert violations(damaged.engine) == []
    wait_until(lambda: assignments_read(damaged) > before)
    assert assignments_read(damaged) - before < 20 * orders


def assignments_read(database):
    """The count of assignments that all ended sessions have read, from PostgreSQL's statistics."""
    query = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'assignment'"
    with database.engine.connect() as connection:
        return connection.execute(text(query)).scalar_one()


def test_an_order_without_a_ledger_entry_is_found(damage, sold):
    found = damage("UPDATE ledger_entry SET kind = 'credit', order_id = NULL WHERE order_id = :order")
    assert found == [f"order {sold['order']} has no ledger entry"]


@pytest.mark.parametrize("times", [2, 3])
def test_an_order_with_several_ledger_entries_is_found(damage, sold, times):
    pay_again = """
        WITH paid AS (
          UPDATE organization SET balance_micros = balance_micros - 1000000, entry_no = entry_no + 1
          WHERE id = :organization RETURNING *
        )
        INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, order_id, created_at)
        SELECT id, entry_no, 'order', -1000000, balance_micros, :order, now() FROM paid
    """
    assert damage(*[pay_again] * (times - 1)) == [f"order {sold['order']} has {times} ledger entries"]


# ---------------------------------------------------------------- the ledger and the balances


def test_a_ledger_entry_with_another_amount_than_its_order_is_found(damage, sold):
    assert damage("UPDATE orders SET total_micros = 1000001 WHERE id = :order") == [
        f"ledger of organization {sold['organization']}: entry 2 charges 1000000 micros "
        f"for order {sold['order']}, but the order's total is 1000001",
        f"order {sold['order']} has a total of 1000001 micros, but its numbers cost 1000000",
    ]


def test_a_ledger_entry_for_a_missing_order_is_found(damage, sold):
    found = damage("DELETE FROM orders WHERE id = :order", "DELETE FROM assignment WHERE id = :assignment", UNASSIGN)
    assert found == [
        f"ledger of organization {sold['organization']}: entry 2 is for order {sold['order']}, which does not exist"
    ]


def test_a_gap_in_the_ledger_is_found(damage, sold):
    assert damage("DELETE FROM ledger_entry WHERE entry_no = 2") == [
        f"ledger of organization {sold['organization']}: entry 2 is missing before entry 3",
        f"order {sold['order']} has no ledger entry",
    ]


def test_a_ledger_that_does_not_start_at_1_is_found(damage, sold):
    found = damage("UPDATE ledger_entry SET entry_no = 0 WHERE entry_no = 1")
    ledger = f"ledger of organization {sold['organization']}"
    assert found[:2] == [
        f"{ledger}: entry -1 is missing before entry 0",
        f"{ledger}: entry 1 is missing before entry 2",
    ]


def test_a_ledger_entry_with_a_wrong_balance_is_found(damage, sold):
    ledger = f"ledger of organization {sold['organization']}"
    assert damage("UPDATE ledger_entry SET balance_micros = 7 WHERE entry_no = 2") == [
        f"{ledger}: entry 2 has a balance of 7 micros, but {CREDIT_MICROS} -1000000 = {BALANCE_AFTER_ONE_ORDER}",
        f"{ledger}: entry 3 has a balance of {BALANCE_AFTER_ONE_ORDER - 1_000_000} micros, but 7 -1000000 = -999993",
    ]


def test_a_first_ledger_entry_with_a_wrong_balance_is_found(damage, sold):
    assert damage("UPDATE ledger_entry SET amount_micros = 7 WHERE entry_no = 1") == [
        f"ledger of organization {sold['organization']}: entry 1 has a balance of {CREDIT_MICROS} micros, but 0 +7 = 7"
    ]


def test_a_ledger_entry_of_a_missing_organization_is_found(damage):
    nobody = uuid7()
    entry = """
        INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, created_at)
        VALUES (:nobody, 1, 'credit', 5, 5, now())
    """
    assert damage(entry, nobody=nobody) == [
        f"ledger of organization {nobody}: entry 1 belongs to an organization that does not exist"
    ]


@pytest.mark.parametrize(
    ("change", "balance", "entries"),
    [("balance_micros = 7", 7, 3), ("entry_no = 4", BALANCE_AFTER_ONE_ORDER - 1_000_000, 4)],
)
def test_an_organization_that_differs_from_its_ledger_is_found(damage, sold, change, balance, entries):
    assert damage(f"UPDATE organization SET {change}") == [
        f"organization {sold['organization']} has a balance of {balance} micros after {entries} ledger entries, "
        f"but its newest entry is 3 with a balance of {BALANCE_AFTER_ONE_ORDER - 1_000_000}"
    ]


def test_a_balance_without_a_ledger_is_found(damage):
    rich = uuid7()
    created = "INSERT INTO organization (id, name, balance_micros, created_at) VALUES (:rich, 'Rich', 1, now())"
    assert damage(created, rich=rich) == [
        f"organization {rich} has a balance of 1 micros after 0 ledger entries, "
        "but its newest entry is 0 with a balance of 0"
    ]


# ---------------------------------------------------------------- ranges, and orders at the same time


def test_every_range_is_checked(damaged, monkeypatch):
    monkeypatch.setattr(check, "RANGE_ROWS", 2)
    customers = [Customer.open(damaged.engine) for _ in range(3)]
    numbers = customers[0].numbers(7)
    orders = [sell(customer, number) for customer, number in zip(customers * 3, numbers, strict=False)]
    assert violations(damaged.engine) == []
    with damaged.engine.begin() as connection:
        connection.execute(text("UPDATE phone_number SET assignment_id = NULL"))
        connection.execute(text("UPDATE orders SET total_micros = 5"))
        connection.execute(text("UPDATE organization SET entry_no = 99"))
    found = "\n".join(violations(damaged.engine))
    assert found.count("refers to no assignment") == found.count("the order's total is 5") == 7
    assert found.count("after 99 ledger entries") == 3
    for ids in orders:
        assert f"assignment {ids['assignment']} is live" in found
        assert f"for order {ids['order']}, but the order's total" in found


@pytest.mark.parametrize("statements", ["SELECT", "SELECT ledger_entry.entry_no"])
def test_orders_at_the_same_time_cause_no_findings(database, customer, monkeypatch, statements):
    monkeypatch.setattr(check, "RANGE_ROWS", 3)
    numbers, is_turn = iter(customer.numbers(50)), cycle([False, True])
    sell(customer, next(numbers))
    # An engine of its own: these statements must not trigger the listener.
    other_customer = replace(customer, engine=admin_engine(database.url))

    @event.listens_for(database.engine, "before_cursor_execute")
    def sell_before_every_second_statement(connection, cursor, statement, *_):
        if statements in statement and next(is_turn):
            for number in islice(numbers, 1):
                sell(other_customer, number)

    assert violations(database.engine) == []
    event.remove(database.engine, "before_cursor_execute", sell_before_every_second_statement)
    assert len(customer.owned()) > 1


def test_an_uncommitted_order_causes_no_findings(database, customer):
    (number,) = customer.numbers(1)
    ids = sale_of(customer, number)
    with database.engine.begin() as connection:
        for statement in SELL:
            connection.execute(text(statement), ids)
            assert violations(database.engine) == []
