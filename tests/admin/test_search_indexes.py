"""The indexes for searches: an upgrade builds them beside running orders, repairs them, and can do without pg_trgm."""

import logging
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import text

from server.errors import OperatorError
from server.rules.values import Criteria
from server.store import advisory_locks, migrations, operator_numbers, search_indexes
from server.store.engine import admin_engine, in_transaction
from tests.support.databases import Database, drop_database, execute, new_database
from tests.support.inventory import add
from tests.support.stack import wait_until

SEARCH, DIGITS = "phone_number_search", "phone_number_digits"
NUMBERS = ["+14155550100", "+14155550199", "+14165550100"]


@pytest.fixture
def unindexed(postgres):
    """A database of the newest schema, but without the indexes."""
    name = new_database(postgres)
    execute_in(postgres.url(name), f"DROP INDEX {SEARCH}, {DIGITS}", "DROP EXTENSION pg_trgm")
    yield Database.at(postgres.url(name))
    drop_database(postgres, name)


def execute_in(url, *statements):
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def indexes(database):
    """By name, whether each index for searches is valid."""
    query = """
        SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE relname LIKE 'phone_number_%' AND NOT indisprimary
    """
    with database.engine.connect() as connection:
        return dict(connection.execute(text(query)).all())


BOTH = {SEARCH: True, DIGITS: True}


def test_an_upgrade_builds_the_indexes_and_a_second_one_changes_nothing(unindexed):
    assert indexes(unindexed) == {}
    migrations.upgrade(unindexed.engine)
    assert indexes(unindexed) == BOTH
    made = "SELECT array_agg(oid::bigint ORDER BY oid) FROM pg_class WHERE relname LIKE 'phone_number_%'"
    with unindexed.engine.connect() as connection:
        before = connection.execute(text(made)).scalar_one()
    migrations.upgrade(unindexed.engine)
    with unindexed.engine.connect() as connection:
        assert connection.execute(text(made)).scalar_one() == before


def test_two_upgrades_at_the_same_time_build_them_once(unindexed):
    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(migrations.upgrade, admin_engine(unindexed.url)) for _ in range(4)]
    assert [each.result() for each in done] == [None] * 4
    assert indexes(unindexed) == BOTH


def waits(database):
    with database.engine.connect() as connection:
        return connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one()


def test_orders_do_not_wait_for_a_build(unindexed):
    (number,) = add(unindexed.engine, NUMBERS[:1])
    with ThreadPoolExecutor(1) as thread, unindexed.engine.connect() as long:
        long.execute(text("LOCK phone_number IN ROW EXCLUSIVE MODE"))  # as an order does
        upgrading = thread.submit(migrations.upgrade, unindexed.engine)
        wait_until(lambda: waits(unindexed))
        with unindexed.engine.begin() as order:
            order.execute(text("SET LOCAL lock_timeout = '5s'"))
            order.execute(text("UPDATE phone_number SET assignment_id = NULL WHERE number = :n"), {"n": number})
        assert not upgrading.done()
        long.rollback()
        upgrading.result()
    assert indexes(unindexed) == BOTH


def test_a_build_that_waits_too_long_says_what_to_do_and_the_next_upgrade_repairs_it(unindexed, monkeypatch):
    monkeypatch.setattr(search_indexes, "LOCK_SECONDS_MAX", 1.0)
    with unindexed.engine.connect() as long:
        long.execute(text("LOCK phone_number IN ROW EXCLUSIVE MODE"))  # as an order does
        with pytest.raises(OperatorError, match="the search indexes could not be built"):
            migrations.upgrade(unindexed.engine)
    assert indexes(unindexed) == {SEARCH: False}
    migrations.upgrade(unindexed.engine)
    assert indexes(unindexed) == BOTH


def test_a_build_waits_for_another_build_only_for_some_time(unindexed, monkeypatch):
    monkeypatch.setattr(search_indexes, "LOCK_SECONDS_MAX", 0.1)
    monkeypatch.setattr(search_indexes, "PAUSE_SECONDS", 0.05)
    with unindexed.engine.connect() as other:
        other.execute(text(f"SELECT pg_advisory_lock({advisory_locks.SEARCH_INDEXES})"))
        with pytest.raises(OperatorError, match="the search indexes could not be built"):
            migrations.upgrade(unindexed.engine)
    assert indexes(unindexed) == {}
    migrations.upgrade(unindexed.engine)
    assert indexes(unindexed) == BOTH


@pytest.fixture
def plain(postgres, unindexed):
    """The same database for a user who may create tables but no extension."""
    execute_in(
        unindexed.url,
        "CREATE ROLE plain",
        "GRANT ALL ON SCHEMA public TO plain",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO plain",
        "ALTER TABLE phone_number OWNER TO plain",
    )
    yield Database.at(f"{unindexed.url}&options=-crole%3Dplain")
    execute_in(unindexed.url, "REASSIGN OWNED BY plain TO CURRENT_USER", "DROP OWNED BY plain")
    execute(postgres, "DROP ROLE plain")


def digits_found(database, pattern):
    found = in_transaction(database.engine, lambda c: operator_numbers.search(c, Criteria(pattern=pattern), 10))
    return sorted(each.number for each in found)


def test_without_the_privilege_for_the_extension_searches_give_the_same_results(unindexed, plain, caplog):
    add(unindexed.engine, NUMBERS)
    with caplog.at_level(logging.WARNING):
        migrations.upgrade(plain.engine)
    (record,) = caplog.records
    assert record.getMessage().startswith("searches for a pattern of digits will be slow: the extension pg_trgm")
    assert "permission denied" in record.getMessage()
    assert indexes(unindexed) == {SEARCH: True}
    without_index = [digits_found(plain, pattern) for pattern in ("5550100", "55019")]
    assert without_index == [[NUMBERS[0], NUMBERS[2]], [NUMBERS[1]]]
    execute_in(unindexed.url, "CREATE EXTENSION pg_trgm")
    migrations.upgrade(plain.engine)
    assert indexes(unindexed) == BOTH
    assert [digits_found(plain, pattern) for pattern in ("5550100", "55019")] == without_index


def test_an_extension_outside_the_search_path_is_no_obstacle(unindexed, caplog):
    execute_in(unindexed.url, "DROP EXTENSION IF EXISTS pg_trgm", "CREATE SCHEMA other")
    execute_in(unindexed.url, "CREATE EXTENSION pg_trgm SCHEMA other")
    with caplog.at_level(logging.WARNING):
        migrations.upgrade(unindexed.engine)
    assert "outside search_path" in caplog.text
    assert indexes(unindexed) == {SEARCH: True}
