"""Admin commands beside other transactions: they run at the level of the settings, and again after a conflict."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import text

from server.store import conflicts, inventory
from server.store.conflicts import TRIES_MAX
from tests.support.stack import wait_until


@pytest.fixture
def repeatable_read(database):
    """Make REPEATABLE READ the default of the test's database."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {connection.info.dbname} SET default_transaction_isolation = 'repeatable read'"
        )


@pytest.mark.usefixtures("repeatable_read")
def test_a_key_is_revoked_after_an_order_whatever_the_database_s_isolation_level(database, customer):
    change = "UPDATE organization SET revision = revision + 1"
    _run_behind(database, change, customer.revoke)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT revoked_at IS NOT NULL FROM api_key")).scalar_one()


@pytest.mark.usefixtures("repeatable_read")
def test_numbers_are_imported_after_an_order_whatever_the_database_s_isolation_level(database):
    number = "+14155550100"
    lines = ["number,number_type,sms_enabled,mms_enabled,price", f"{number},local,true,true,{{price}}"]
    _import(database, lines, "1.00")
    change = "UPDATE phone_number SET sms_enabled = false"
    _run_behind(database, change, lambda: _import(database, lines, "2.00"))
    with database.engine.connect() as connection:
        query = text("SELECT price_micros FROM phone_number WHERE number = :number")
        assert connection.execute(query, {"number": number}).scalar_one() == 2_000_000


def _import(database, lines, price):
    inventory.import_csv(database.engine, [line.format(price=price) for line in lines])


def _run_behind(database, change, work):
    """Run `work`, which must wait for another transaction that ran `change`."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with ThreadPoolExecutor(1) as thread, database.engine.connect() as other:
        other.execute(text(change))
        done = thread.submit(work)
        wait_until(lambda: done.done() or other.execute(text(waiting)).scalar_one())
        other.commit()
        done.result()


def _fail_changes(database, times, sqlstate):
    """Let the first changes of an organization's row fail with that SQLSTATE."""
    # A sequence counts them, because it does not roll back.
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


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(conflicts, "PAUSE_SECONDS_MAX", 0)


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_a_command_runs_again_after_a_conflict(ordernumbers, database, customer, sqlstate):
    _fail_changes(database, TRIES_MAX - 1, sqlstate)
    assert ordernumbers("key", "revoke", customer.key_id)["id"] == str(customer.key_id)


@pytest.mark.usefixtures("no_pauses")
def test_a_command_gives_up_after_many_conflicts_and_says_what_to_do(ordernumbers, database, customer):
    _fail_changes(database, TRIES_MAX, "40001")
    refusal = ordernumbers.refusal("key", "revoke", customer.key_id)
    assert refusal == "other transactions were in the way: run it again"
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT revoked_at FROM api_key")).scalars().all() == [None]


def test_a_command_does_not_run_again_after_another_error(ordernumbers, database, customer):
    _fail_changes(database, 1, "55000")
    assert ordernumbers.refusal("key", "revoke", customer.key_id) == "database error: not now"
