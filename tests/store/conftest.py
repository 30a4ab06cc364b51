"""A customer on the test's own database, and a way to wait until a transaction waits for a lock there."""

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
