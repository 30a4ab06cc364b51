"""Admin commands among other transactions: READ COMMITTED whatever the default, and run again when PostgreSQL could not
order them."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import text

from server.store import inventory
from server.store.engine import TRIES_MAX
from tests.support.stack import wait_until


@pytest.fixture
def repeatable_read(database):
    """For everyone on the test's database who does not ask for another isolation level."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET default_transaction_isolation = 'repeatable read'"
        )


@pytest.mark.usefixtures("repeatable_read")
def test_a_key_is_revoked_after_waiting_for_an_order_whatever_the_database_s_isolation_level(database, customer):
    change = "UPDATE organization SET revision = revision + 1"
    _waits_for(database, change, customer.revoke)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT revoked_at IS NOT NULL FROM api_key")).scalar_one()


@pytest.mark.usefixtures("repeatable_read")
def test_numbers_are_imported_after_waiting_for_an_order_whatever_the_database_s_isolation_level(database):
    number = "+14155550100"
    lines = ["number,number_type,sms_enabled,mms_enabled,price", f"{number},local,true,true,{{price}}"]
    _import(database, lines, "1.00")
    change = "UPDATE phone_number SET sms_enabled = false"
    _waits_for(database, change, lambda: _import(database, lines, "2.00"))
    with database.engine.connect() as connection:
        query = text("SELECT price_micros FROM phone_number WHERE number = :number")
        assert connection.execute(query, {"number": number}).scalar_one() == 2_000_000


def _import(database, lines, price):
    inventory.import_csv(database.engine, [line.format(price=price) for line in lines])


def _waits_for(database, change, work):
    """`work` begins while another transaction has done `change`, waits for it, and ends after it."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with ThreadPoolExecutor(1) as thread, database.engine.connect() as other:
        other.execute(text(change))
        done = thread.submit(work)
        wait_until(lambda: done.done() or other.execute(text(waiting)).scalar_one())
        other.commit()
        done.result()


def _failing(database, times, sqlstate):
    """The first changes of an organization's row fail, each with that SQLSTATE. Sequences do not roll back."""
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"""
            CREATE SEQUENCE tries;
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              IF nextval('tries') <= {times} THEN RAISE EXCEPTION 'not now' USING ERRCODE = '{sqlstate}'; END IF;
              RETURN new;
            END $$;
            CREATE TRIGGER fail BEFORE UPDATE ON organization FOR EACH ROW EXECUTE FUNCTION fail();
        """)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_a_command_that_met_a_deadlock_is_run_again(ordernumbers, database, customer, sqlstate):
    _failing(database, TRIES_MAX - 1, sqlstate)
    assert ordernumbers("key", "revoke", customer.key_id)["id"] == str(customer.key_id)


def test_a_command_is_run_again_a_few_times_only(ordernumbers, database, customer):
    _failing(database, TRIES_MAX, "40001")
    assert ordernumbers.refusal("key", "revoke", customer.key_id) == "the database answered: not now"


def test_a_command_is_not_run_again_for_any_other_reason(ordernumbers, database, customer):
    _failing(database, 1, "55000")
    assert ordernumbers.refusal("key", "revoke", customer.key_id) == "the database answered: not now"
