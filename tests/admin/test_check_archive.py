"""The check accepts what an archive has left, and still finds damage in it."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from server.store import archive as archiving
from server.store.check import violations
from tests.support.customer import CREDIT_MICROS, Customer
from tests.support.inventory import let_time_pass
from tests.support.life import Life

BEFORE = datetime.now(UTC) - timedelta(days=100)


@pytest.fixture
def customer(damaged):
    return Customer.open(damaged.engine)


@pytest.fixture
def ledger(damaged, customer, tmp_path, monkeypatch):
    """How findings name the ledger. Entries 1 to 3 are archived, 4 and 5 are left. The orders of 2 to 5 are live."""
    monkeypatch.setattr(archiving, "PAUSE_PER_STEP", 0)
    life, numbers = Life(damaged, customer), customer.numbers(4)
    for number in numbers[:2]:
        life.order(number)
    let_time_pass(customer, days=200)
    for number in numbers[2:]:
        life.order(number)
    assert archiving.archive(damaged.engine, BEFORE, tmp_path / "file")["ledger_entry"] == 3
    assert violations(damaged.engine) == []
    return f"ledger of organization {customer.id}"


@pytest.fixture
def damage(damaged, ledger):
    """Run statements that change one row each, and return the findings of the check."""

    def run(*statements, **values):
        with damaged.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # turns off foreign keys
            for statement in statements:
                assert connection.execute(text(statement), values).rowcount == 1
        return violations(damaged.engine)

    return run


@pytest.fixture
def orders(damaged, ledger):
    """The ids of the four orders, oldest first."""
    with damaged.engine.connect() as connection:
        return connection.execute(text("SELECT id FROM orders ORDER BY id")).scalars().all()


def test_a_ledger_without_its_archive_is_found(damage, ledger, orders):
    assert damage("DELETE FROM archive") == [
        f"{ledger}: entry 3 is missing before entry 4",
        f"order {orders[0]} has no ledger entry",
        f"order {orders[1]} has no ledger entry",
    ]


def test_an_entry_that_is_missing_after_the_archived_ones_is_found(damage, ledger, orders):
    assert damage("DELETE FROM ledger_entry WHERE entry_no = 4") == [
        f"{ledger}: entry 4 is missing before entry 5",
        f"order {orders[2]} has no ledger entry",
    ]


def test_an_archive_of_too_few_entries_is_found(damage, ledger):
    assert damage("UPDATE archive SET entry_no = 2") == [f"{ledger}: entry 3 is missing before entry 4"]


def test_an_entry_that_should_be_archived_is_found(damage, ledger):
    assert damage("UPDATE archive SET entry_no = 4") == [
        f"{ledger}: entry 4 exists, although the entries up to 4 are archived"
    ]


def test_another_balance_of_the_archived_entries_is_found(damage, ledger):
    assert damage("UPDATE archive SET balance_micros = 7") == [
        f"{ledger}: entry 4 has a balance of {CREDIT_MICROS - 3_000_000} micros, but 7 -1000000 = -999993"
    ]


def test_an_archived_entry_that_came_back_is_found(damage, ledger):
    came_back = """
        INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, created_at)
        SELECT organization_id, 1, 'credit', :credit, :credit, entries_until - interval '1 day' FROM archive
    """
    assert damage(came_back, credit=CREDIT_MICROS) == [
        f"{ledger}: entry 1 exists, although the entries up to 3 are archived"
    ]


def test_a_second_charge_for_an_order_whose_entry_is_archived_is_found(damage, ledger, orders, customer):
    again = """
        INSERT INTO ledger_entry (
          organization_id, entry_no, kind, amount_micros, balance_micros, order_id, created_at
        )
        SELECT id, 6, 'order', -1000000, balance_micros - 1000000, :order, now() FROM organization
    """
    charge = "UPDATE organization SET entry_no = 6, balance_micros = balance_micros - 1000000"
    assert damage(again, charge, order=orders[0]) == [
        f"{ledger}: entry 6 charges for order {orders[0]}, whose entry is archived"
    ]


def test_a_new_order_without_an_entry_is_found(damage, ledger, orders):
    found = damage("UPDATE ledger_entry SET kind = 'credit', order_id = NULL WHERE entry_no = 5")
    assert found == [f"order {orders[3]} has no ledger entry"]


def test_an_archived_order_without_its_assignment_is_still_found(damage, ledger, orders, customer):
    number = "number = (SELECT number FROM assignment ORDER BY id LIMIT 1)"
    found = damage(
        f"UPDATE phone_number SET assignment_id = NULL WHERE {number}",
        "DELETE FROM assignment WHERE id = (SELECT id FROM assignment ORDER BY id LIMIT 1)",
    )
    assert found == [f"order {orders[0]} has no assignments"]


@pytest.mark.parametrize(("days", "is_archived"), [(50, False), (150, True)])
def test_a_rest_after_the_date_of_the_archive_still_needs_its_release(damage, ledger, customer, days, is_archived):
    (number,) = customer.numbers(1)
    rest = "UPDATE phone_number SET rest_until = now() - make_interval(days => :days) WHERE number = :number"
    found = [each.partition(" until ")[0] for each in damage(rest, number=number, days=days)]
    assert found == ([] if is_archived else [f"number {number} rests"])
