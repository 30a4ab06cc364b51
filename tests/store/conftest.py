"""A customer on the test's own database, and what tests of locks and of conflicts share."""

import random
import threading
import time

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from tests.support.customer import Customer


@pytest.fixture
def customer(database):
    return Customer.open(database.engine)


@pytest.fixture
def fail_clock(database, customer):
    """Make the next `times` readings of the database's clock fail by a serialization failure.

    The look at an API key reads the clock, and so does the purge. New connections only.
    """
    name = conninfo_to_dict(database.url)["dbname"]

    def arm(times):
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"""
                UPDATE api_key SET expires_at = now() + interval '1 hour';  -- otherwise its look-up reads no clock
                CREATE SCHEMA failing;
                CREATE SEQUENCE failing.failures;
                CREATE FUNCTION failing.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN
                  IF nextval('failing.failures') <= {times} THEN RAISE SQLSTATE '40001'; END IF;  -- never rolled back
                  RETURN pg_catalog.clock_timestamp();
                END $$;
                ALTER DATABASE {name} SET search_path = failing, pg_catalog, public;
            """)

    yield arm
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} RESET search_path")


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
