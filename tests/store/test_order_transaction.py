"""The order transaction on a real database: what it locks, what it leaves, and what the database itself refuses."""

import asyncio
import os
import random
import signal
import threading
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from server.config import Settings
from server.messages import order_response
from server.rules.values import Idempotency, Order, Placed, Retry, Routing
from server.store import orders
from server.store.connection import connect
from server.store.inventory import import_csv
from server.store.orders import place
from server.store.transaction import Limits, OutcomeUnknown
from tests.store.conftest import in_disorder
from tests.support.customer import Customer
from tests.support.orders import order_of
from tests.support.retries import is_serializable, retried
from tests.support.stack import wait_until

LIMITS = Limits(lock_seconds=0.2, statement_seconds=5.0)


def keyed(order, key="k"):
    return order._replace(idempotency=Idempotency(key, b"what was asked"))


def carry_out(database, *batches, meanwhile=None, limits=LIMITS, **options):
    """Carry out batches one after the other on one connection."""

    async def run():
        connection = await connect(database.url, Settings(), orders.STATEMENTS)

        def attempt(batch):
            return retried(connection, lambda: place(connection, batch, limits, **options))

        try:
            if meanwhile:
                meanwhile(connection)
            return [await attempt(batch) for batch in batches]
        finally:
            await connection.close()

    return asyncio.run(run())


def codes(decisions):
    return ["PLACED" if isinstance(d, Placed) else str(d.code) for d in decisions]


def test_a_batch_of_many_organizations_is_one_transaction(database, customer):
    other = Customer.open(database.engine)
    numbers = customer.numbers(5)
    batch = [
        order_of(customer, numbers[0], numbers[1], routing=Routing(label="first")),
        order_of(other, numbers[1], numbers[2]),
        order_of(other, numbers[2]),
        order_of(customer, "+999", numbers[3]),
        order_of(other, numbers[3], numbers[4]),
    ]
    (decisions,) = carry_out(database, batch)
    assert codes(decisions) == ["PLACED", "INSUFFICIENT_INVENTORY", "PLACED", "INSUFFICIENT_INVENTORY", "PLACED"]
    assert (customer.owned(), other.owned()) == (set(numbers[:2]), set(numbers[2:]))
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar() == 1


def test_a_connection_carries_out_one_batch_after_another(database, customer):
    (number,) = customer.numbers(1)
    batches = [
        [order_of(customer, "+999")],
        [order_of(customer, number)],
        [order_of(customer, number)],
        [order_of(customer, *customer.numbers(3))],
    ]
    responses = carry_out(database, *batches)
    refused = ["INSUFFICIENT_INVENTORY"]
    assert [codes(decisions) for decisions in responses] == [refused, ["PLACED"], refused, ["PLACED"]]


def test_an_unknown_key_is_unauthorized(database, customer):
    stranger = order_of(customer, *customer.numbers(1))._replace(api_key_id=str(uuid4()))
    assert codes(carry_out(database, [stranger])[0]) == ["UNAUTHORIZED"]


def test_all_rows_of_an_order_have_the_same_time(database, customer):
    (decisions,) = carry_out(database, [order_of(customer, *customer.numbers(2))])
    with database.engine.connect() as connection:
        instants = connection.execute(
            text("SELECT created_at FROM orders UNION SELECT created_at FROM assignment UNION SELECT updated_at FROM "
                 "assignment UNION SELECT created_at FROM ledger_entry WHERE kind = 'order'")
        )  # fmt: skip
        assert [row[0] for row in instants] == [decisions[0].at]


def test_the_count_of_numbers_and_the_price_of_each_are_stored(database, customer):
    """`ordernumbers check` needs both. The price of a number may change later."""
    cheap, dear = customer.numbers(1, price_micros=1), customer.numbers(1, price_micros=3_000_000_000)
    carry_out(database, [order_of(customer, *dear, *cheap)])
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT number_count FROM orders")).all() == [(2,)]
        prices = connection.execute(text("SELECT number, price_micros FROM assignment")).all()
    assert {tuple(row) for row in prices} == {(*cheap, 1), (*dear, 3_000_000_000)}


KEPT = text("""
    SELECT o.id::text, o.organization_id::text, o.api_key_id::text, o.request_id, o.total_micros, -l.amount_micros,
      l.entry_no, l.balance_micros, o.quantity, o.created_at, a.number, a.id::text AS assignment_id, a.inbound_url,
      a.status_url, a.label, a.campaign_id::text, i.key, i.fingerprint, i.method, i.answer, i.created_at AS stored_at
    FROM orders o
    JOIN ledger_entry l ON l.order_id = o.id
    JOIN assignment a ON a.order_id = o.id
    JOIN idempotency_key i ON i.order_id = o.id
    ORDER BY a.id
""")


def test_every_field_of_an_order_is_stored(database, customer):
    """A new field of orders must be read back here, or this test fails."""
    routing = Routing("https://a.example/in", "https://a.example/st", "front desk", str(customer.campaign()))
    asked = keyed(order_of(customer, *customer.numbers(2), routing=routing, quantity=2))
    asked = asked._replace(request_id="01M854FAVJYDMKM278")
    assert None not in (*asked, *routing)
    ((placed,),) = carry_out(database, [asked])
    with database.engine.connect() as connection:
        first, second = connection.execute(KEPT)
    for row in (first, second):
        kept = Order(
            id=row.id,
            organization_id=row.organization_id,
            api_key_id=row.api_key_id,
            scope="numbers:write",  # what the method asks of the key
            request_id=row.request_id,
            numbers=(first.number, second.number),
            assignment_ids=(first.assignment_id, second.assignment_id),
            routing=Routing(*(getattr(row, name) for name in Routing._fields)),
            idempotency=Idempotency(row.key, row.fingerprint, row.method),
            quantity=row.quantity,
        )
        assert kept == asked
        assert row[4:8] == (
            placed.total_micros,
            placed.total_micros,
            placed.account.entry_no,
            customer.balance_micros(),
        )
        assert (row.answer, row.created_at, row.stored_at) == (order_response(placed), placed.at, placed.at)


@pytest.fixture
def default_isolation(database):
    """Set another default isolation level for the database."""

    def set_default(isolation):
        with psycopg.connect(database.url, autocommit=True) as connection:
            name = connection.execute("SELECT current_database()").fetchone()[0]
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")

    return set_default


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_a_sale_waits_for_a_running_revocation_and_is_then_refused(
    database, customer, until_a_transaction_waits, default_isolation, isolation
):
    """Both lock the organization's row. The sale reads the key after that, whatever the default isolation."""
    default_isolation(isolation)
    waiting = order_of(customer, *customer.numbers(1))
    response = []
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE organization SET revision = revision + 1"))
        buyer = threading.Thread(target=lambda: response.append(carry_out(database, [waiting])))
        buyer.start()
        until_a_transaction_waits()
        connection.execute(text("UPDATE api_key SET revoked_at = clock_timestamp()"))
    buyer.join()
    assert codes(response[0][0]) == ["UNAUTHORIZED"]


def test_a_key_that_expires_while_its_sale_waits_is_refused(database, customer, until_a_transaction_waits):
    """The time is that of the decision, and not of the start of the transaction."""
    waiting = order_of(customer, *customer.numbers(1))
    response = []
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE organization SET revision = revision + 1"))
        buyer = threading.Thread(target=lambda: response.append(carry_out(database, [waiting])))
        buyer.start()
        until_a_transaction_waits()
        connection.execute(text("UPDATE api_key SET expires_at = clock_timestamp()"))
    buyer.join()
    assert codes(response[0][0]) == ["UNAUTHORIZED"]


def test_a_credit_that_waited_for_a_sale_has_a_later_time(database, customer, until_a_transaction_waits):
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM organization FOR UPDATE"))
        donor = threading.Thread(target=lambda: customer.credit(1))
        donor.start()
        until_a_transaction_waits()
        sold_at = connection.execute(text("SELECT clock_timestamp()")).scalar()
    donor.join()
    with database.engine.connect() as connection:
        newest = connection.execute(text("SELECT created_at FROM ledger_entry ORDER BY entry_no DESC LIMIT 1")).scalar()
    assert newest > sold_at


def test_a_sale_waits_for_another_sale_of_its_number_and_is_then_refused(database, customer, until_a_transaction_waits):
    (number,) = customer.numbers(1)
    response = []
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number FOR NO KEY UPDATE"))
        buyer = threading.Thread(target=lambda: response.append(carry_out(database, [order_of(customer, number)])))
        buyer.start()
        until_a_transaction_waits()
        connection.execute(text("UPDATE phone_number SET free_at = clock_timestamp() + interval '1 day'"))
    buyer.join()
    assert codes(response[0][0]) == ["INSUFFICIENT_INVENTORY"]


@pytest.mark.parametrize("is_keyed", [False, True])
def test_numbers_are_locked_in_sorted_order(database, customer, numbers_free_meanwhile, is_keyed):
    """Otherwise two orders of the same numbers could wait for each other."""
    numbers, wanted = in_disorder(customer, 40)
    asked = keyed(order_of(customer, *wanted)) if is_keyed else order_of(customer, *wanted)
    patient = Limits(lock_seconds=20, statement_seconds=20)
    free = numbers_free_meanwhile(numbers[20], lambda: carry_out(database, [asked], limits=patient))
    assert free == set(numbers[21:])


def test_an_import_locks_numbers_in_sorted_order(database, customer, numbers_free_meanwhile):
    numbers = [f"+1415{i}" for i in random.Random(3).sample(range(2_000_000, 2_000_040), 40)]
    header, *rows = "number,number_type,sms_enabled,mms_enabled,price", *(f"{n},local,true,false,1" for n in numbers)
    import_csv(database.engine, [header, *rows])
    changed = [header, *random.Random(5).sample([f"{row}.50" for row in rows], 40)]
    middle = sorted(numbers)[20]
    free = numbers_free_meanwhile(middle, lambda: import_csv(database.engine, changed))
    assert free == set(sorted(numbers)[21:])


def test_organizations_are_locked_in_sorted_order_after_the_numbers(database, until_a_transaction_waits):
    customers = sorted((Customer.open(database.engine) for _ in range(9)), key=lambda customer: customer.id)
    numbers = customers[0].numbers(9)
    batch = [
        order_of(customer, number)
        for customer, number in zip(random.Random(5).sample(customers, 9), numbers, strict=True)
    ]
    free = text("SELECT id FROM organization FOR UPDATE SKIP LOCKED")
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM organization WHERE id = :id FOR UPDATE"), {"id": customers[4].id})
        patient = Limits(lock_seconds=20, statement_seconds=20)
        buyer = threading.Thread(target=lambda: carry_out(database, batch, limits=patient))
        buyer.start()
        until_a_transaction_waits()
        with database.engine.connect() as other:
            assert set(other.execute(free).scalars()) == {customer.id for customer in customers[5:]}
            assert not other.execute(text("SELECT number FROM phone_number FOR UPDATE SKIP LOCKED")).all()
    buyer.join()


def test_the_wait_for_a_locked_row_has_a_limit(database, customer):
    (number,) = customer.numbers(1)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
        with pytest.raises(psycopg.errors.LockNotAvailable):
            carry_out(database, [order_of(customer, number)])
    assert codes(carry_out(database, [order_of(customer, number)])[0]) == ["PLACED"]


@pytest.mark.parametrize("table", ["phone_number", "organization"])
def test_an_order_of_a_skipped_row_is_retried(database, customer, table):
    """Nothing is known about the row. So it is neither a missing number nor a bad key."""
    waiting = order_of(customer, *customer.numbers(1))
    with database.engine.begin() as connection:
        connection.execute(text(f"SELECT FROM {table} FOR UPDATE"))
        assert carry_out(database, [waiting], skip_locked=True) == [[Retry()]]


def test_an_order_whose_stored_response_is_purged_meanwhile_is_retried(database, customer, until_a_transaction_waits):
    """Its number was not locked, because there was a response. The number exists all the same."""
    answered, locked = customer.numbers(2)
    batch = [keyed(order_of(customer, answered)), order_of(customer, locked)]
    decisions = []
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO idempotency_key SELECT :id, 'k', '', :id, '', now()"), {"id": customer.id})
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": locked})
        buyer = threading.Thread(target=lambda: decisions.extend(carry_out(database, batch)[0]))
        buyer.start()
        until_a_transaction_waits()
        with database.engine.begin() as purge:
            purge.execute(text("DELETE FROM idempotency_key"))
    buyer.join()
    if is_serializable():  # it began before the purge, so it sees the response
        assert codes(decisions[:1]) == ["IDEMPOTENCY_KEY_REUSED"]
    else:
        assert decisions[0] == Retry()
    assert codes(decisions[1:]) == ["PLACED"]


def test_a_write_without_a_result_in_time_is_an_unknown_outcome(database, customer, monkeypatch):
    """The backend is frozen with the write, and continues after we have given up."""
    (number,) = customer.numbers(1)
    decide, frozen = orders.decide, []

    def freeze(batch, state):
        os.kill(frozen[0], signal.SIGSTOP)
        return decide(batch, state)

    monkeypatch.setattr(orders, "decide", freeze)

    async def run():
        connection = await connect(database.url, Settings(), orders.STATEMENTS)
        frozen.append(connection.backend_pid)
        try:
            async with connection.at_most(0.5):
                await place(connection, [order_of(customer, number)], LIMITS)
        finally:
            await connection.close()

    try:
        with pytest.raises(OutcomeUnknown):
            asyncio.run(run())
    finally:
        os.kill(frozen[0], signal.SIGCONT)
    wait_until(customer.owned)


def test_a_connection_lost_before_the_write_leaves_nothing(database, customer, monkeypatch):
    def cut(connection):
        monkeypatch.setattr(orders, "decide", lambda *args: (_end_backend(database, connection), [])[1])

    with pytest.raises(OutcomeUnknown) as lost:  # of a transaction without orders
        carry_out(database, [order_of(customer, *customer.numbers(1))], meanwhile=cut)
    assert lost.value.sent == {}
    assert customer.owned() == set()


def test_a_connection_lost_after_the_write_was_sent_is_an_unknown_outcome(database, customer, monkeypatch):
    decide = orders.decide

    def cut(connection):
        def decide_and_cut(*args):
            _end_backend(database, connection)
            return decide(*args)

        monkeypatch.setattr(orders, "decide", decide_and_cut)

    with pytest.raises(OutcomeUnknown):
        carry_out(database, [order_of(customer, *customer.numbers(1))], meanwhile=cut)


def _end_backend(database, connection):
    with psycopg.connect(database.url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.backend_pid])
