"""A customer on the test's own database, and what tests of locks share."""

import random
import threading
import time

import pytest
from sqlalchemy import text

from tests.support.customer import Customer


@pytest.fixture
def customer(database):
    return Customer.open(database.engine)


@pytest.fixture
def until_a_transaction_waits(database):
    """A function that returns when a transaction waits for another's lock."""

    def wait():
        waiters = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not connection.execute(waiters).scalar():
                time.sleep(0.001)

    return wait


@pytest.fixture
def numbers_free_meanwhile(database, until_a_transaction_waits):
    """The numbers that no transaction has locked while `work` waits for this one."""

    def look(number, work):
        with database.engine.begin() as connection:
            connection.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": number})
            working = threading.Thread(target=work)
            working.start()
            until_a_transaction_waits()
            with database.engine.connect() as other:
                free = other.execute(text("SELECT number FROM phone_number FOR UPDATE SKIP LOCKED")).scalars().all()
        working.join()
        return set(free)

    return look


def in_disorder(customer, count):
    """New numbers, sorted and shuffled. Their rows are in a third order."""
    numbers = sorted(random.Random(3).sample(customer.numbers(count // 2) + customer.numbers(count // 2), count))
    return numbers, random.Random(5).sample(numbers, count)
