"""What an import writes to the history: when each number was imported, and what it changed."""

import threading

import pytest
from sqlalchemy import event, text

from server.store.engine import admin_engine
from server.store.inventory import WRITE_ROWS, import_csv
from tests.support.retries import is_serializable
from tests.support.stack import wait_until

HEADER = "number,number_type,sms_enabled,mms_enabled,price\n"
FIRST, SECOND = "+14155550100", "+14155550101"


def import_rows(engine, *rows):
    return import_csv(engine, [HEADER, *(f"{row}\n" for row in rows)])


@pytest.fixture
def rows(database):
    def read(query):
        with database.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    return read


def events(rows):
    return rows("SELECT number, before, after FROM number_event ORDER BY number, created_at")


def test_a_new_number_has_the_time_of_its_import_and_no_event(database, rows):
    ((before,),) = rows("SELECT clock_timestamp()")
    import_rows(database.engine, f"{FIRST},local,true,false,1")
    (((imported_at,),), ((after,),)) = rows("SELECT imported_at FROM phone_number"), rows("SELECT clock_timestamp()")
    assert before < imported_at < after
    assert events(rows) == []


@pytest.mark.parametrize(
    ("row", "before", "after"),
    [
        ("toll_free,true,false,1", {"number_type": "local"}, {"number_type": "toll_free"}),
        ("local,false,false,1", {"sms_enabled": True}, {"sms_enabled": False}),
        ("local,true,true,1", {"mms_enabled": False}, {"mms_enabled": True}),
        ("local,true,false,0.000002", {"price_micros": 1_000_000}, {"price_micros": 2}),
        (
            "short_code,false,true,2",
            {"number_type": "local", "sms_enabled": True, "mms_enabled": False, "price_micros": 1_000_000},
            {"number_type": "short_code", "sms_enabled": False, "mms_enabled": True, "price_micros": 2_000_000},
        ),
    ],
)
def test_a_change_is_an_event_with_exactly_what_changed(database, rows, row, before, after):
    import_rows(database.engine, f"{FIRST},local,true,false,1", f"{SECOND},local,true,false,1")
    imported_at = rows("SELECT imported_at FROM phone_number ORDER BY number")
    import_rows(database.engine, f"{FIRST},{row}", f"{SECOND},local,true,false,1")
    assert events(rows) == [(FIRST, before, after)]
    assert rows("SELECT imported_at FROM phone_number ORDER BY number") == imported_at
    assert rows("SELECT kind, organization_id, api_key_id, request_id FROM number_event") == [
        ("changed", None, None, None)
    ]


def test_the_changes_of_an_import_have_one_id_and_are_in_the_transactions_of_their_numbers(database, rows):
    numbers = [f"+1415{2_000_000 + i},local,true,false" for i in range(WRITE_ROWS + 1)]
    for price in (1, 2, 3):
        import_rows(database.engine, *(f"{number},{price}" for number in numbers))
    assert rows("SELECT count(*), count(DISTINCT id) FROM number_event") == [(2 * len(numbers), 2)]
    together = (
        "SELECT count(*) FROM number_event e JOIN phone_number p USING (number) WHERE e.xmin::text = p.xmin::text"
    )
    assert rows(together) == [(len(numbers),)]
    assert rows("SELECT count(DISTINCT xmin::text) FROM phone_number") == [(2,)]


def test_an_event_has_the_time_of_the_change_and_not_of_the_wait_for_it(database, rows):
    import_rows(database.engine, f"{FIRST},local,true,false,1")
    with database.engine.connect() as order:
        order.execute(text("SELECT FROM phone_number FOR UPDATE"))
        thread = importing(database, f"{FIRST},local,true,false,2")
        wait_until(lambda: order.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())
        until = order.execute(text("SELECT clock_timestamp()")).scalar_one()
        order.rollback()
        thread.join()
    ((created_at,),) = rows("SELECT created_at FROM number_event")
    assert created_at > until


def importing(database, *lines):
    """A thread that imports these rows."""
    thread = threading.Thread(target=import_rows, args=(database.engine, *lines))
    thread.start()
    return thread


def test_the_value_from_before_is_that_of_an_import_that_it_waited_for(database, rows):
    import_rows(database.engine, f"{FIRST},local,true,false,1")
    with database.engine.connect() as other:
        other.execute(text("UPDATE phone_number SET price_micros = 5"))
        thread = importing(database, f"{FIRST},local,true,false,2")
        wait_until(lambda: other.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())
        other.commit()
        thread.join()
    assert events(rows) == [(FIRST, {"price_micros": 5}, {"price_micros": 2_000_000})]


def test_a_number_that_another_import_adds_at_the_same_time_is_changed_and_that_is_an_event(database, rows):
    added = f"INSERT INTO phone_number VALUES ('{FIRST}', 'local', true, false, 5)"
    results = []
    with database.engine.connect() as other:
        other.execute(text(added))
        lines = (f"{FIRST},local,true,false,2", f"{SECOND},local,true,false,2")
        thread = threading.Thread(target=lambda: results.append(import_rows(database.engine, *lines)))
        thread.start()
        wait_until(lambda: other.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())
        other.commit()
        thread.join()
    assert results == [(1, 1, 0, 0, [])]
    assert events(rows) == [(FIRST, {"price_micros": 5}, {"price_micros": 2_000_000})]
    assert rows("SELECT DISTINCT price_micros FROM phone_number") == [(2_000_000,)]


def test_a_number_that_is_changed_twice_by_one_import_has_two_events(database, rows):
    """An import writes a chunk again if another one has added some of its numbers. That one may change others too."""
    import_rows(database.engine, f"{FIRST},local,true,false,1")
    other_engine, writes = admin_engine(database.url), []

    @event.listens_for(database.engine, "before_cursor_execute")
    def change_before_the_second_write(connection, cursor, statement, *_):
        if "change AS MATERIALIZED" in statement:
            writes.append(statement)
            if len(writes) == 2:
                import_rows(other_engine, f"{FIRST},local,true,false,5")

    with other_engine.connect() as other:
        other.execute(text(f"INSERT INTO phone_number VALUES ('{SECOND}', 'local', true, false, 2000000)"))
        thread = importing(database, f"{FIRST},local,true,false,2", f"{SECOND},local,true,false,2")
        wait_until(lambda: other.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())
        other.commit()
        thread.join()
    event.remove(database.engine, "before_cursor_execute", change_before_the_second_write)
    prices = [
        (before["price_micros"] // 1_000_000, after["price_micros"] // 1_000_000) for _, before, after in events(rows)
    ]
    # At SERIALIZABLE the first write conflicts with the other import, so it leaves nothing.
    assert prices == ([(1, 5), (5, 2)] if is_serializable() else [(1, 2), (2, 5), (5, 2)])
    assert rows("SELECT DISTINCT price_micros FROM phone_number") == [(2_000_000,)]


def test_a_number_that_another_import_has_added_meanwhile_is_counted_once(database, rows):
    """It was added after this import had looked for it, with the same values or with others."""
    other = admin_engine(database.url)

    @event.listens_for(database.engine, "before_cursor_execute")
    def add_first(connection, cursor, statement, *_):
        if "change AS MATERIALIZED" in statement and not rows_added:
            rows_added.append(import_rows(other, f"{FIRST},local,true,false,2"))

    rows_added = []
    imported = import_rows(database.engine, f"{FIRST},local,true,false,2", f"{SECOND},local,true,false,2")
    event.remove(database.engine, "before_cursor_execute", add_first)
    assert imported == (1, 0, 1, 0, [])
    assert events(rows) == []


def test_existing_numbers_are_locked_in_order_and_before_new_ones_are_added(database, rows):
    """Two imports, and orders, lock numbers in ascending order. So they wait for each other in one direction only."""
    last = "+14155550199"
    import_rows(database.engine, f"{SECOND},local,true,false,1", f"{last},local,true,false,1")
    lines = [f"{number},local,true,false,2" for number in (last, FIRST, SECOND)]
    with database.engine.connect() as order:
        order.execute(text("SELECT FROM phone_number WHERE number = :number FOR UPDATE"), {"number": last})
        thread = importing(database, *lines)
        wait_until(lambda: order.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())
        free = "SELECT count(*) FROM (SELECT FROM phone_number WHERE number = :n FOR UPDATE SKIP LOCKED) free"
        assert order.execute(text(free), {"n": SECOND}).scalar_one() == 0
        with database.engine.connect() as another:
            # Adding it would wait for the import, if that had added it already.
            another.execute(text("SET LOCAL lock_timeout = '2s'"))
            another.execute(text(f"INSERT INTO phone_number VALUES ('{FIRST}', 'local', true, false, 7)"))
            another.rollback()
        order.rollback()
        thread.join()
    assert rows("SELECT DISTINCT price_micros FROM phone_number") == [(2_000_000,)]
