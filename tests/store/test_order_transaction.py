"""The order transaction on a real database: what it locks, what it leaves, and what the database itself refuses."""

import asyncio
import random
import threading
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from uuid_utils.compat import uuid7

from server.config import Settings
from server.errors import Refusal
from server.ordering import Order, Placed
from server.service import answer_of
from server.store import orders
from server.store.orders import Limits, OutcomeUnknown, place
from server.store.pipeline import DatabaseAway, connect
from tests.shop import Shop

LIMITS = Limits(lock_seconds=0.2, statement_seconds=5.0)


def order(shop, *numbers, **more):
    return Order(
        id=str(uuid7()),
        organization_id=str(shop.id),
        api_key_id=str(shop.key_id),
        scope="numbers:write",
        request_id="",
        numbers=numbers,
        assignment_ids=tuple(str(uuid7()) for _ in numbers),
        **more,
    )


def carry_out(database, *batches, meanwhile=None, limits=LIMITS, **options):
    """Carry out batches one after the other on one connection."""

    async def run():
        connection = await connect(database.url, Settings(), orders.STATEMENTS)
        try:
            if meanwhile:
                meanwhile(connection)
            return [await place(connection, batch, answer_of, limits, **options) for batch in batches]
        finally:
            await connection.close()

    return asyncio.run(run())


def codes(decisions):
    return ["PLACED" if isinstance(d, Placed) else str(d.code) for d in decisions]


def test_a_batch_of_many_organizations_is_one_transaction(database, shop):
    other = Shop.open(database.engine)
    numbers = shop.numbers(5)
    batch = [
        order(shop, numbers[0], numbers[1], label="first"),
        order(other, numbers[1], numbers[2]),
        order(other, numbers[2]),
        order(shop, "+999", numbers[3]),
        order(other, numbers[3], numbers[4]),
    ]
    (decisions,) = carry_out(database, batch)
    assert codes(decisions) == ["PLACED", "INSUFFICIENT_INVENTORY", "PLACED", "INSUFFICIENT_INVENTORY", "PLACED"]
    assert (shop.owned(), other.owned()) == (set(numbers[:2]), set(numbers[2:]))
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar() == 1


def test_a_connection_serves_one_batch_after_another_refused_or_not(database, shop):
    (number,) = shop.numbers(1)
    batches = [[order(shop, "+999")], [order(shop, number)], [order(shop, number)], [order(shop, *shop.numbers(3))]]
    answers = carry_out(database, *batches)
    refused = ["INSUFFICIENT_INVENTORY"]
    assert [codes(decisions) for decisions in answers] == [refused, ["PLACED"], refused, ["PLACED"]]


def test_a_key_of_nobody_is_unauthorized(database, shop):
    stranger = order(shop, *shop.numbers(1))._replace(api_key_id=str(uuid4()))
    assert codes(carry_out(database, [stranger])[0]) == ["UNAUTHORIZED"]


def test_every_row_of_an_order_says_the_same_instant(database, shop):
    (decisions,) = carry_out(database, [order(shop, *shop.numbers(2))])
    with database.engine.connect() as connection:
        instants = connection.execute(
            text("SELECT created_at FROM orders UNION SELECT created_at FROM assignment UNION SELECT updated_at FROM "
                 "assignment UNION SELECT created_at FROM ledger_entry WHERE kind = 'order'")
        )  # fmt: skip
        assert [row[0] for row in instants] == [decisions[0].at]


def test_a_sale_waits_for_a_revocation_under_way_and_then_hears_of_it(database, shop, until_somebody_waits):
    """The organization's row makes the order of the two; the key is read after it."""
    waiting = order(shop, *shop.numbers(1))
    answer = []
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE organization SET revision = revision + 1"))
        buyer = threading.Thread(target=lambda: answer.append(carry_out(database, [waiting])))
        buyer.start()
        until_somebody_waits()
        connection.execute(text("UPDATE api_key SET revoked_at = clock_timestamp()"))
    buyer.join()
    assert codes(answer[0][0]) == ["UNAUTHORIZED"]


def test_a_sale_waits_for_another_of_the_same_number_and_then_sees_it_sold(database, shop, until_somebody_waits):
    (number,) = shop.numbers(1)
    answer = []
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number FOR NO KEY UPDATE"))
        buyer = threading.Thread(target=lambda: answer.append(carry_out(database, [order(shop, number)])))
        buyer.start()
        until_somebody_waits()
        connection.execute(text("UPDATE phone_number SET free_at = clock_timestamp() + interval '1 day'"))
    buyer.join()
    assert codes(answer[0][0]) == ["INSUFFICIENT_INVENTORY"]


def test_numbers_are_locked_in_order_whatever_the_request_says(database, shop, until_somebody_waits):
    """Or two orders of the same numbers would wait for each other."""
    first = shop.numbers(20)
    numbers = sorted(random.Random(3).sample(first + shop.numbers(20), 40))
    wanted = random.Random(5).sample(numbers, 40)
    free = text("SELECT number FROM phone_number FOR UPDATE SKIP LOCKED")
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": numbers[20]})
        patient = Limits(lock_seconds=20, statement_seconds=20)
        buyer = threading.Thread(target=lambda: carry_out(database, [order(shop, *wanted)], limits=patient))
        buyer.start()
        until_somebody_waits()
        with database.engine.connect() as other:
            assert set(other.execute(free).scalars()) == set(numbers[21:])
    buyer.join()


def test_organizations_are_locked_in_order_and_after_the_numbers(database, until_somebody_waits):
    shops = sorted((Shop.open(database.engine) for _ in range(9)), key=lambda shop: shop.id)
    numbers = shops[0].numbers(9)
    batch = [order(shop, number) for shop, number in zip(random.Random(5).sample(shops, 9), numbers, strict=True)]
    free = text("SELECT id FROM organization FOR UPDATE SKIP LOCKED")
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM organization WHERE id = :id FOR UPDATE"), {"id": shops[4].id})
        patient = Limits(lock_seconds=20, statement_seconds=20)
        buyer = threading.Thread(target=lambda: carry_out(database, batch, limits=patient))
        buyer.start()
        until_somebody_waits()
        with database.engine.connect() as other:
            assert set(other.execute(free).scalars()) == {shop.id for shop in shops[5:]}
            assert not other.execute(text("SELECT number FROM phone_number FOR UPDATE SKIP LOCKED")).all()
    buyer.join()


def test_a_row_that_somebody_keeps_locked_does_not_hold_us_for_ever(database, shop):
    (number,) = shop.numbers(1)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
        with pytest.raises(psycopg.errors.LockNotAvailable):
            carry_out(database, [order(shop, number)])
    assert codes(carry_out(database, [order(shop, number)])[0]) == ["PLACED"]


def test_a_connection_lost_before_the_write_leaves_nothing(database, shop, monkeypatch):
    def cut(connection):
        monkeypatch.setattr(orders, "decide", lambda *args: (_end_backend(database, connection), [])[1])

    with pytest.raises(DatabaseAway):
        carry_out(database, [order(shop, *shop.numbers(1))], meanwhile=cut)
    assert shop.owned() == set()


def test_a_connection_lost_after_the_write_was_sent_may_have_sold(database, shop, monkeypatch):
    decide = orders.decide

    def cut(connection):
        def decide_and_cut(*args):
            _end_backend(database, connection)
            return decide(*args)

        monkeypatch.setattr(orders, "decide", decide_and_cut)

    with pytest.raises(OutcomeUnknown):
        carry_out(database, [order(shop, *shop.numbers(1))], meanwhile=cut)


def _end_backend(database, connection):
    with psycopg.connect(database.url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.backend_pid])


# ---------------------------------------------------------------- the database's own guard


def test_the_database_refuses_a_second_live_assignment_of_a_number(database, shop):
    carry_out(database, [order(shop, *shop.numbers(1))])
    again = (
        "INSERT INTO assignment SELECT organization_id, gen_random_uuid(), order_id, number, null, null, null, null,"
    )
    with pytest.raises(IntegrityError, match="assignment_one_live_per_number"), database.engine.begin() as connection:
        connection.execute(text(f"{again} created_at, updated_at FROM assignment"))


def test_the_database_refuses_a_negative_balance(database, shop):
    with (
        pytest.raises(IntegrityError, match="organization_balance_not_negative"),
        database.engine.begin() as connection,
    ):
        connection.execute(text("UPDATE organization SET balance_micros = -1"))


def test_a_sale_that_the_database_refuses_leaves_nothing(database, shop, monkeypatch):
    """As if the decision had overlooked that a number is sold."""
    (number,) = shop.numbers(1)
    carry_out(database, [order(shop, number)])
    before = shop.everything()
    decide = orders.decide

    def careless(batch, state):
        free = {n: row._replace(assignment_id=None) for n, row in state.numbers.items()}
        return decide(batch, state._replace(numbers=free))

    monkeypatch.setattr(orders, "decide", careless)
    with pytest.raises(psycopg.errors.UniqueViolation):
        carry_out(database, [order(shop, number)])
    assert shop.everything() == before


def test_a_refusal_is_told_and_nothing_is_written(database, shop):
    before = shop.everything()
    (decisions,) = carry_out(database, [order(shop, "+999"), order(shop, *shop.numbers(1, price_micros=10**17))])
    assert all(isinstance(decision, Refusal) for decision in decisions)
    assert shop.everything() == before
