"""The check finds each kind of damage, names the row, and nothing else; and it is not fooled by sales going on."""

from dataclasses import replace
from itertools import cycle, islice
from uuid import UUID

import pytest
from sqlalchemy import event, text
from uuid_utils.compat import uuid7

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersResponse, PhoneNumber
from server.store import check
from server.store.check import violations
from server.store.engine import admin_engine
from tests.admin.conftest import SELL, sell
from tests.support.customer import CREDIT_MICROS, Customer
from tests.support.stack import wait_until

ORDERED = CREDIT_MICROS - 1_000_000


@pytest.fixture
def sold(damaged):
    """An order of one number, ready to be damaged, beside a sound one and a number that is not sold."""
    customer = Customer.open(damaged.engine)
    damaged_number, sound, _ = customer.numbers(3)
    ids = sell(customer, damaged_number)
    sell(customer, sound)
    assert violations(damaged.engine) == []
    return ids


@pytest.fixture
def damage(damaged, sold):
    """Run statements that break something, constraints notwithstanding; returns what the check then finds."""

    def run(*statements, **values):
        with damaged.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # no foreign keys
            for statement in statements:
                connection.execute(text(statement), sold | values)
        return violations(damaged.engine)

    return run


def test_an_empty_database_is_in_order(damaged):
    assert violations(damaged.engine) == []


def test_a_number_sold_twice(damage, sold):
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
        f"assignment {second} is live, and its number {sold['number']} is marked as assigned by {sold['assignment']}",
        f"order {sold['order']} is of 1 numbers, and has 2 assignments",
    ]


def test_a_number_marked_by_no_assignment(damage, sold):
    other = uuid7()
    assert damage("UPDATE phone_number SET assignment_id = :other WHERE number = :number", other=other) == [
        f"number {sold['number']} is marked as assigned by {other}, which is not a live assignment of it",
        f"assignment {sold['assignment']} is live, and its number {sold['number']} is marked as assigned by {other}",
    ]


def test_a_sold_number_marked_as_free(damage, sold):
    assert damage("UPDATE phone_number SET assignment_id = NULL WHERE number = :number") == [
        f"assignment {sold['assignment']} is live, and its number {sold['number']} is marked as not assigned"
    ]


def test_a_number_marked_by_an_assignment_that_ended(damage, sold):
    assert damage("UPDATE assignment SET released_at = now() WHERE id = :assignment") == [
        f"number {sold['number']} is marked as assigned by {sold['assignment']}, which is not a live assignment of it"
    ]


def test_a_released_number_is_in_order(damage):
    released = "UPDATE assignment SET released_at = now() WHERE id = :assignment"
    assert damage(released, "UPDATE phone_number SET assignment_id = NULL WHERE number = :number") == []


def test_an_assignment_of_a_number_that_is_not_there(damage, sold):
    assert damage("DELETE FROM phone_number WHERE number = :number") == [
        f"assignment {sold['assignment']} is of number {sold['number']}, which is not in the inventory"
    ]


def test_an_assignment_whose_order_is_anothers(damage, sold):
    other = uuid7()
    found = damage("UPDATE assignment SET organization_id = :other WHERE id = :assignment", other=other)
    assert found == [
        f"assignment {sold['assignment']} belongs to order {sold['order']}, which organization {other} does not have",
        f"order {sold['order']} has no assignment",
    ]


def test_an_assignment_whose_campaign_is_anothers(damage, sold):
    campaign = uuid7()
    assert damage("UPDATE assignment SET campaign_id = :campaign WHERE id = :assignment", campaign=campaign) == [
        f"assignment {sold['assignment']} belongs to campaign {campaign}, "
        f"which organization {sold['organization']} does not have"
    ]


def test_an_order_without_an_assignment(damage, sold):
    found = damage(
        "DELETE FROM assignment WHERE id = :assignment",
        "UPDATE phone_number SET assignment_id = NULL WHERE number = :number",
    )
    assert found == [f"order {sold['order']} has no assignment"]


OF_ONE = ()
OF_THREE = ("UPDATE orders SET number_count = 3 WHERE id = :order",)
# What a server wrote that knew neither column.
OF_OLD = ("UPDATE orders SET number_count = NULL", "UPDATE assignment SET price_micros = NULL")
# Two more numbers of the order, whose ids sort anyhow.
MORE = tuple(
    f"""
    WITH number AS (
      INSERT INTO phone_number (number, number_type, sms_enabled, mms_enabled, price_micros, assignment_id)
      VALUES ('+{i}', 'local', true, true, 0, gen_random_uuid())
      RETURNING *
    )
    INSERT INTO assignment (organization_id, id, order_id, number, price_micros, created_at, updated_at)
    SELECT :organization, assignment_id, :order, number, 0, now(), now() FROM number
    """
    for i in (1, 2)
)
# Every assignment's id before that of every order.
SORT_BEFORE = (
    "UPDATE assignment SET id = ('00000000' || right(id::text, -8))::uuid",
    "UPDATE phone_number SET assignment_id = ('00000000' || right(assignment_id::text, -8))::uuid",
)


def test_an_order_of_three_numbers_that_has_two(damage, sold):
    found = damage(*OF_THREE, *MORE[:1])
    assert found == [f"order {sold['order']} is of 3 numbers, and has 2 assignments"]


def test_an_order_of_as_many_numbers_as_it_says(damage):
    assert damage(*OF_THREE, *MORE) == []


def test_an_order_and_its_ledger_entry_that_both_say_nothing_was_paid(damage, sold):
    found = damage(
        "UPDATE orders SET total_micros = 0 WHERE id = :order",
        "UPDATE ledger_entry SET amount_micros = 0 WHERE order_id = :order",
        "UPDATE ledger_entry SET balance_micros = balance_micros + 1000000 WHERE entry_no > 1",
        "UPDATE organization SET balance_micros = balance_micros + 1000000",
    )
    assert found == [f"order {sold['order']} has a total of 0 micros, and its numbers cost 1000000"]


def test_an_assignment_without_a_price_in_an_order_that_knows_its_numbers(damage, sold):
    assert damage("UPDATE assignment SET price_micros = NULL WHERE id = :assignment") == [
        f"order {sold['order']} has a total of 1000000 micros, and its numbers cost 0"
    ]


def test_an_order_of_old_is_in_order_with_one_number_or_more(damage):
    assert damage(*OF_OLD) == []
    assert damage(*MORE, *OF_OLD) == []


def test_an_order_of_old_without_an_assignment(damage, sold):
    found = damage(
        *OF_OLD,
        "DELETE FROM assignment WHERE id = :assignment",
        "UPDATE phone_number SET assignment_id = NULL WHERE number = :number",
    )
    assert found == [f"order {sold['order']} has no assignment"]


@pytest.mark.parametrize("said", [OF_THREE, OF_OLD], ids=["counted", "of old"])
def test_assignments_whose_ids_are_older_than_their_orders_are_found(damage, said):
    assert damage(*MORE, *said, *SORT_BEFORE) == []


@pytest.mark.parametrize("said", [OF_ONE, OF_OLD], ids=["counted", "of old"])
def test_the_work_grows_with_the_rows_whatever_the_order_of_their_ids(damaged, said):
    """Each assignment is read a few times, though all of them sort before their orders."""
    customer, count = Customer.open(damaged.engine), 300
    for number in customer.numbers(count):
        sell(customer, number)
    with damaged.engine.begin() as connection:
        for statement in (*SORT_BEFORE, *said):
            connection.execute(text(statement))
    before = rows_read(damaged)
    assert violations(damaged.engine) == []
    wait_until(lambda: rows_read(damaged) > before)
    assert rows_read(damaged) - before < 20 * count


def rows_read(database):
    """Assignments that finished sessions have read in all, as PostgreSQL counts them."""
    query = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'assignment'"
    with database.engine.connect() as connection:
        return connection.execute(text(query)).scalar_one()


def test_an_order_that_was_not_paid(damage, sold):
    found = damage("UPDATE ledger_entry SET kind = 'credit', order_id = NULL WHERE order_id = :order")
    assert found == [f"order {sold['order']} has 0 ledger entries"]


@pytest.mark.parametrize("times", [2, 3])
def test_an_order_paid_more_than_once(damage, sold, times):
    again = """
        WITH paid AS (
          UPDATE organization SET balance_micros = balance_micros - 1000000, entry_no = entry_no + 1
          WHERE id = :organization RETURNING *
        )
        INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, order_id, created_at)
        SELECT id, entry_no, 'order', -1000000, balance_micros, :order, now() FROM paid
    """
    assert damage(*[again] * (times - 1)) == [f"order {sold['order']} has {times} ledger entries"]


def test_an_order_paid_with_another_amount(damage, sold):
    assert damage("UPDATE orders SET total_micros = 1000001 WHERE id = :order") == [
        f"ledger of organization {sold['organization']}: entry 2 takes 1000000 micros "
        f"for order {sold['order']}, whose total is 1000001",
        f"order {sold['order']} has a total of 1000001 micros, and its numbers cost 1000000",
    ]


def test_a_ledger_entry_for_an_order_that_is_not_there(damage, sold):
    found = damage(
        "DELETE FROM orders WHERE id = :order",
        "DELETE FROM assignment WHERE id = :assignment",
        "UPDATE phone_number SET assignment_id = NULL WHERE number = :number",
    )
    assert found == [
        f"ledger of organization {sold['organization']}: entry 2 is for order {sold['order']}, which is not there"
    ]


def test_a_gap_in_the_ledger(damage, sold):
    found = damage("DELETE FROM ledger_entry WHERE entry_no = 2")
    assert found == [
        f"ledger of organization {sold['organization']}: entry 3 does not follow entry 2",
        f"order {sold['order']} has 0 ledger entries",
    ]


def test_a_ledger_that_does_not_begin_with_1(damage, sold):
    found = damage("UPDATE ledger_entry SET entry_no = 0 WHERE entry_no = 1")
    ledger = f"ledger of organization {sold['organization']}"
    assert found[:2] == [f"{ledger}: entry 0 does not follow entry -1", f"{ledger}: entry 2 does not follow entry 1"]


def test_a_ledger_entry_that_does_not_add_up(damage, sold):
    ledger = f"ledger of organization {sold['organization']}"
    assert damage("UPDATE ledger_entry SET balance_micros = 7 WHERE entry_no = 2") == [
        f"{ledger}: entry 2 leaves a balance of 7 micros, and {CREDIT_MICROS} -1000000 make {ORDERED}",
        f"{ledger}: entry 3 leaves a balance of {ORDERED - 1_000_000} micros, and 7 -1000000 make -999993",
    ]


def test_a_first_ledger_entry_that_does_not_add_up(damage, sold):
    assert damage("UPDATE ledger_entry SET amount_micros = 7 WHERE entry_no = 1") == [
        f"ledger of organization {sold['organization']}: entry 1 leaves a balance of {CREDIT_MICROS} micros, "
        "and 0 +7 make 7"
    ]


def test_a_ledger_of_nobody(damage):
    nobody = uuid7()
    entry = """
        INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, created_at)
        VALUES (:nobody, 1, 'credit', 5, 5, now())
    """
    assert damage(entry, nobody=nobody) == [
        f"ledger of organization {nobody}: entry 1 is of an organization that does not exist"
    ]


@pytest.mark.parametrize(
    ("change", "balance", "entries"),
    [("balance_micros = 7", 7, 3), ("entry_no = 4", ORDERED - 1_000_000, 4)],
)
def test_an_organization_that_is_not_as_its_ledger_says(damage, sold, change, balance, entries):
    assert damage(f"UPDATE organization SET {change}") == [
        f"organization {sold['organization']} has a balance of {balance} micros after {entries} ledger entries, "
        f"and its newest entry, 3, leaves {ORDERED - 1_000_000}"
    ]


def test_credit_without_a_ledger(damage):
    nobody = uuid7()
    created = "INSERT INTO organization (id, name, balance_micros, created_at) VALUES (:nobody, 'Rich', 1, now())"
    assert damage(created, nobody=nobody) == [
        f"organization {nobody} has a balance of 1 micros after 0 ledger entries, and its newest entry, 0, leaves 0"
    ]


def test_every_range_is_looked_at(damaged, monkeypatch):
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
    assert found.count("not assigned") == found.count("whose total is 5") == 7
    assert found.count("after 99 ledger entries") == 3
    for ids in orders:
        assert f"assignment {ids['assignment']} is live" in found
        assert f"for order {ids['order']}, whose total" in found


@pytest.mark.parametrize("statements", ["SELECT", "SELECT entry_no, order_id"])
def test_sales_going_on_are_no_violations(database, customer, monkeypatch, statements):
    """Before every second of these statements of the check a number is sold."""
    monkeypatch.setattr(check, "RANGE_ROWS", 3)
    numbers, turns = iter(customer.numbers(50)), cycle([False, True])
    sell(customer, next(numbers))
    shop_elsewhere = replace(customer, engine=admin_engine(database.url))

    @event.listens_for(database.engine, "before_cursor_execute")
    def sell_one(connection, cursor, statement, *_):
        if statements in statement and next(turns):
            for number in islice(numbers, 1):
                sell(shop_elsewhere, number)

    assert violations(database.engine) == []
    event.remove(database.engine, "before_cursor_execute", sell_one)
    assert len(customer.owned()) > 1


def test_a_sale_in_the_middle_is_not_seen_by_half(database, customer):
    (number,) = customer.numbers(1)
    ids = {
        "organization": customer.id,
        "key": customer.key_id,
        "order": uuid7(),
        "assignment": uuid7(),
        "number": number,
    }
    with database.engine.begin() as connection:
        for statement in SELL:
            connection.execute(text(statement), ids)
            assert violations(database.engine) == []


REMEMBER = "INSERT INTO idempotency_key VALUES (:organization, 'k', '', :kept, :answer, now())"


@pytest.mark.parametrize(
    ("order", "answer", "finding"),
    [
        (UUID(int=7), "x", f"is for order {UUID(int=7)}, which is not there"),
        (None, "", "keeps no answer for order {order}"),
        (None, "x", "keeps an answer that is not order {order}'s"),
    ],
)
def test_an_idempotency_key_without_its_order_or_answer(damage, sold, order, answer, finding):
    found = damage(REMEMBER, kept=order or sold["order"], answer=answer.encode())
    assert found == [f"an idempotency key of organization {sold['organization']} {finding.format(**sold)}"]


def kept_answer(*rows):
    return OrderNumbersResponse(
        success=True, data=[PhoneNumber(id=str(id_), number=number) for id_, number in rows]
    ).SerializeToString()


@pytest.mark.parametrize("said", [OF_ONE, OF_OLD], ids=["counted", "of old"])
def test_a_kept_answer_that_is_its_order_s_is_in_order(damage, sold, said):
    answer = kept_answer((sold["assignment"], sold["number"]))
    released = "UPDATE assignment SET released_at = now() WHERE id = :assignment"
    free = "UPDATE phone_number SET assignment_id = NULL WHERE number = :number"
    assert damage(*said, REMEMBER, kept=sold["order"], answer=answer) == []
    assert damage(released, free) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("{assignment}", "+19")], OF_ONE),
        ([(str(UUID(int=7)), "{number}")], OF_ONE),
        ([("no id", "{number}")], OF_ONE),
        ([("{assignment}", "{number}")] * 2, OF_OLD),
        ([("{assignment}", "{number}")], (*OF_THREE, *MORE)),
        ([], OF_OLD),
    ],
    ids=["another number", "another id", "no id", "a number twice", "a part", "nothing"],
)
def test_a_kept_answer_that_is_not_its_order_s(damage, sold, rows, said):
    answer = kept_answer(*((id_.format(**sold), number.format(**sold)) for id_, number in rows)) or b"\x08\x01"
    found = damage(*said, REMEMBER, kept=sold["order"], answer=answer)
    assert found == [
        f"an idempotency key of organization {sold['organization']} keeps an answer that is not order {sold['order']}'s"
    ]


def test_a_kept_answer_that_is_another_order_s(damage, damaged, sold):
    with damaged.engine.connect() as connection:
        query = text("SELECT id, number FROM assignment WHERE id <> :assignment")
        answer = kept_answer(connection.execute(query, sold).one())
    assert damage(REMEMBER, kept=sold["order"], answer=answer) == [
        f"an idempotency key of organization {sold['organization']} keeps an answer that is not order {sold['order']}'s"
    ]


def test_every_kept_answer_is_looked_at(damage, sold, monkeypatch):
    monkeypatch.setattr(check, "ANSWERS_ROWS", 2)
    keys = "SELECT :organization, 'k' || i, '', :order, 'x', now() FROM generate_series(1, 7) i"
    assert len(damage(f"INSERT INTO idempotency_key {keys}")) == 7
