"""Orders that are tried again: after a temporary failure, and while their outcome is unknown."""

import asyncio

import psycopg
import pytest
from sqlalchemy import text

from server.errors import Code
from server.store import orders
from server.store.transaction import OutcomeUnknown
from tests.support.batcher import outcome, run
from tests.support.orders import order_of


def buy(batcher, customer, number, timeout_seconds=10.0):
    return outcome(batcher, order_of(customer, number), timeout_seconds)


# ---------------------------------------------------------------- another transaction was in the way


@pytest.fixture
def fail(database):
    """Make the next `times` writes of orders fail in the database."""

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
def test_a_batch_runs_again_as_a_whole_after_a_conflict(database, customer, fail, sqlstate):
    numbers = customer.numbers(5)
    fail(sqlstate, 2)

    async def work(batcher):
        return await asyncio.gather(*(buy(batcher, customer, number) for number in numbers))

    assert run(database.url, work) == ["PLACED"] * 5
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT xmin::text) FROM orders")).scalar() == 1


@pytest.mark.parametrize("sqlstate", [DEADLOCK, SERIALIZATION])
def test_an_order_is_placed_after_more_conflicts_than_a_batch_is_tried(database, customer, fail, sqlstate):
    (number,) = customer.numbers(1)
    fail(sqlstate, 8)  # more than ATTEMPTS_MAX
    assert run(database.url, lambda batcher: buy(batcher, customer, number)) == "PLACED"


# ---------------------------------------------------------------- an unknown outcome that stays unknown


@pytest.fixture
def lose(monkeypatch):
    """Lose the connection instead of the next write, and call `then`."""

    def arm(then):
        async def lost(connection, _, sent):
            connection.cut()
            then()
            raise OutcomeUnknown(sent)

        monkeypatch.setattr(orders, "finish", lost)

    return arm


@pytest.fixture
def go_away(database, postgres):
    """Make the database refuse every connection until the end of the test."""
    (name,) = psycopg.conninfo.conninfo_to_dict(database.url)["dbname"].split()

    def allow(yes):
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {yes}")

    yield lambda: allow(False)
    allow(True)


@pytest.fixture
def break_down(monkeypatch):
    """Make every decision fail, as a bug would."""
    return lambda: monkeypatch.setattr(orders, "decide", lambda *_: 1 / 0)


@pytest.fixture
def lock_numbers(database):
    """Lock every number until the end of the test."""
    with database.engine.connect() as connection:
        yield lambda: connection.execute(text("SELECT FROM phone_number FOR UPDATE"))


@pytest.mark.parametrize("trouble", ["go_away", "break_down", "lock_numbers"])
def test_an_order_with_an_unknown_outcome_times_out_whatever_fails_then(request, database, customer, lose, trouble):
    """After 503 or INTERNAL a caller would order again, and might pay twice."""
    (number,) = customer.numbers(1)
    lose(request.getfixturevalue(trouble))
    assert run(database.url, lambda batcher: buy(batcher, customer, number, 2.0)) is Code.TIMEOUT
