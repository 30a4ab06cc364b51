"""What the database itself refuses, whatever the order transaction sends."""

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from server.errors import Refusal
from server.store import orders
from tests.store.test_order_transaction import carry_out
from tests.support.orders import order_of


def test_the_database_refuses_a_second_live_assignment_of_a_number(database, customer):
    carry_out(database, [order_of(customer, *customer.numbers(1))])
    again = (
        "INSERT INTO assignment SELECT organization_id, gen_random_uuid(), order_id, number, null, null, null, null,"
    )
    with pytest.raises(IntegrityError, match="assignment_one_live_per_number"), database.engine.begin() as connection:
        connection.execute(text(f"{again} created_at, updated_at FROM assignment"))


def test_the_database_refuses_a_negative_balance(database, customer):
    with (
        pytest.raises(IntegrityError, match="organization_balance_not_negative"),
        database.engine.begin() as connection,
    ):
        connection.execute(text("UPDATE organization SET balance_micros = -1"))


def test_a_sale_that_the_database_refuses_leaves_nothing(database, customer, monkeypatch):
    """Here the decision ignores that a number is sold."""
    (number,) = customer.numbers(1)
    carry_out(database, [order_of(customer, number)])
    before = customer.everything()
    decide = orders.decide

    def careless(batch, state):
        free = {n: row._replace(assignment_id=None) for n, row in state.numbers.items()}
        return decide(batch, state._replace(numbers=free))

    monkeypatch.setattr(orders, "decide", careless)
    with pytest.raises(psycopg.errors.UniqueViolation):
        carry_out(database, [order_of(customer, number)])
    assert customer.everything() == before


def test_a_refusal_is_returned_and_nothing_is_written(database, customer):
    before = customer.everything()
    (decisions,) = carry_out(
        database, [order_of(customer, "+999"), order_of(customer, *customer.numbers(1, price_micros=10**17))]
    )
    assert all(isinstance(decision, Refusal) for decision in decisions)
    assert customer.everything() == before
