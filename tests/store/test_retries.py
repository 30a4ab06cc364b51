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

DEADLOCK, SERIALIZATION = "40P01", "40001"
WRITE, COMMIT = "write", "COMMIT"


def buy(batcher, customer, number, timeout_seconds=10.0):
    return outcome(batcher, order_of(customer, number), timeout_seconds)


# ---------------------------------------------------------------- another transaction was in the way


@pytest.fixture
def fail(database):
    """Make the next `times` writes of orders fail in the database, or their COMMITs. Or only those of one number."""

    def arm(sqlstate, times, when=WRITE, number=""):
        kind, deferred = ("CONSTRAINT", "DEFERRABLE INITIALLY DEFERRED") if when is COMMIT else ("", "")
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"""
                CREATE SEQUENCE failures;
                CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                  IF '{number}' IN ('', new.number) AND nextval('failures') <= {times} THEN  -- never rolled back
                    RAISE SQLSTATE '{sqlstate}';
                  END IF;
                  RETURN NULL;
                END $$;
                CREATE {kind} TRIGGER fail AFTER INSERT ON assignment {deferred} FOR EACH ROW EXECUTE FUNCTION fail();
            """)

    return arm


@pytest.mark.parametrize("when", [WRITE, COMMIT])
@pytest.mark.parametrize("sqlstate", [DEADLOCK, SERIALIZATION])
def test_a_batch_runs_again_as_a_whole_after_a_conflict(database, customer, fail, sqlstate, when):
    numbers = customer.numbers(5)
    fail(sqlstate, 2, when)

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


@pytest.mark.parametrize("when", [WRITE, COMMIT])
def test_an_order_that_conflicts_until_its_deadline_is_not_carried_out_and_its_batch_is(database, customer, fail, when):
    """Its caller gets 503, which says that nothing was sold."""
    unlucky, *others = customer.numbers(6)
    fail(SERIALIZATION, 1_000_000, when, unlucky)

    async def work(batcher):
        first = buy(batcher, customer, unlucky, 3.0)
        return await asyncio.gather(first, *(buy(batcher, customer, number) for number in others))

    assert run(database.url, work) == [Code.UNAVAILABLE, *["PLACED"] * 5]
    assert customer.owned() == set(others)


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
