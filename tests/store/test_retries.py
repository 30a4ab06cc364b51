"""Orders that are tried again: after a failure that passes, and until it is known what became of them."""

import asyncio

import psycopg
import pytest
from sqlalchemy import text

from server.errors import Code
from server.rules.values import Placed
from server.store import orders
from server.store.orders import OutcomeUnknown
from tests.store.test_batching import order, outcome, run


def buy(batcher, customer, number, timeout_seconds=10.0):
    return outcome(batcher, order(customer.id, number, api_key_id=customer.key_id), timeout_seconds)


# ---------------------------------------------------------------- another transaction was in the way


@pytest.fixture
def fail(database):
    """Let the next orders that are written fail in the database, so many times."""

    def arm(sqlstate, times):
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"""
                CREATE SEQUENCE failures;
                CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                  IF nextval('failures') <= {times} THEN RAISE SQLSTATE '{sqlstate}'; END IF;  -- never rolled back
                  RETURN NULL;
                END $$;
                CREATE TRIGGER fail AFTER INSERT ON orders EXECUTE FUNCTION fail();
            """)

    return arm


DEADLOCK, SERIALIZATION = "40P01", "40001"


@pytest.mark.parametrize("sqlstate", [DEADLOCK, SERIALIZATION])
def test_a_batch_that_was_in_a_deadlock_is_run_again_as_a_whole(database, customer, fail, sqlstate):
    numbers = customer.numbers(5)
    fail(sqlstate, 2)

    async def work(batcher):
        return await asyncio.gather(*(buy(batcher, customer, number) for number in numbers))

    assert run(database.url, work) == ["PLACED"] * 5
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar() == 1


@pytest.mark.parametrize("sqlstate", [DEADLOCK, SERIALIZATION])
def test_an_order_that_is_in_deadlocks_again_and_again_is_placed_at_last(database, customer, fail, sqlstate):
    (number,) = customer.numbers(1)
    fail(sqlstate, 8)  # more often than a batch is tried
    assert run(database.url, lambda batcher: buy(batcher, customer, number)) == "PLACED"


# ---------------------------------------------------------------- an unknown outcome that stays unknown


@pytest.fixture
def lose(monkeypatch):
    """Lose the connection in place of the next write, and call `then`."""

    def arm(then):
        async def lost(connection, decisions, *_):
            connection.cut()
            then()
            raise OutcomeUnknown([decision for decision in decisions if isinstance(decision, Placed)])

        monkeypatch.setattr(orders, "_finish", lost)

    return arm


@pytest.fixture
def go_away(database, postgres):
    """Let the database refuse every connection from now on. Afterwards it takes them again."""
    (name,) = psycopg.conninfo.conninfo_to_dict(database.url)["dbname"].split()

    def allow(yes):
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {yes}")

    yield lambda: allow(False)
    allow(True)


@pytest.fixture
def break_down(monkeypatch):
    """Let every decision fail from now on, as a mistake in the program would."""
    return lambda: monkeypatch.setattr(orders, "decide", lambda *_: 1 / 0)


@pytest.fixture
def lock_numbers(database):
    """Lock every number until the end of the test."""
    with database.engine.connect() as connection:
        yield lambda: connection.execute(text("SELECT FROM phone_number FOR UPDATE"))


@pytest.mark.parametrize("trouble", ["go_away", "break_down", "lock_numbers"])
def test_an_order_of_unknown_outcome_is_not_called_undone_whatever_follows(request, database, customer, lose, trouble):
    """Whoever heard 503 or INTERNAL would order again, and might pay twice."""
    (number,) = customer.numbers(1)
    lose(request.getfixturevalue(trouble))
    assert run(database.url, lambda batcher: buy(batcher, customer, number, 2.0)) is Code.TIMEOUT
