"""`ordernumbers archive`: what is old goes to a file, and nothing else. No row is lost, and orders go on meanwhile."""

import asyncio
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import cycle

import httpx
import pytest
from sqlalchemy import event, text

from server.config import Settings
from server.errors import OperatorError
from server.rules.values import Idempotency, Replayed
from server.store import archive as archiving
from server.store import check, orders
from server.store.archive import archive, count
from server.store.check import violations
from server.store.connection import connect
from server.store.engine import admin_engine
from tests.support.background_orders import BackgroundOrders
from tests.support.callers import TIMEOUT_SECONDS, Rest
from tests.support.customer import CREDIT_MICROS, Customer
from tests.support.inventory import let_time_pass
from tests.support.life import LIMITS, REST_MS, Life
from tests.support.old_orders import LIVE_EVERY, add_old_orders
from tests.support.orders import order_of
from tests.support.stack import wait_until
from tests.support.writes import buy

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
BEFORE = TODAY - timedelta(days=100)
DAYS = 200
"""How old the old rows of these tests are."""
TABLES = archiving.TABLES


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(archiving, "PAUSE_PER_STEP", 0)


@pytest.fixture
def life(database, customer):
    return Life(database, customer)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "archive.jsonl.gz"


def rows_of(database):
    """All rows that an archive may move, as pairs of the table and the row."""
    with database.engine.connect() as connection:
        return Counter(
            (table, as_text(row))
            for table in TABLES
            for row in connection.execute(text(f"SELECT to_jsonb(t) FROM {table} t")).scalars()
        )


def rows_in(*files):
    """The same of files. The last row of a file may be incomplete."""
    return Counter(row for file in files for row in lines_of(file))


def lines_of(file):
    with gzip.open(file, "rt") as lines:
        try:
            for line in lines:
                named = json.loads(line)
                assert list(named) == ["table", "row"]
                yield named["table"], as_text(named["row"])
        except EOFError:
            return


def as_text(row):
    return json.dumps(row, sort_keys=True)


def tables(rows):
    """How many rows of each table."""
    counts = Counter(table for table, _ in rows.elements())
    return {table: counts[table] for table in TABLES}


def ids_in(rows, table):
    return {json.loads(row)["id"] for each, row in rows if each == table}


def sessions(database):
    """How many other sessions use the database."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with database.engine.connect() as connection:
        return connection.execute(text(query)).scalar_one()


def indexes(database):
    query = "SELECT relname FROM pg_class WHERE relname LIKE 'archive_%order'"
    with database.engine.connect() as connection:
        return connection.execute(text(query)).scalars().all()


def counts(**named):
    return dict.fromkeys(TABLES, 0) | named


# ---------------------------------------------------------------- what goes and what stays


def test_what_is_old_goes_to_the_file_and_all_else_stays(database, customer, life, file):
    gone, live, late, held, again = customer.numbers(5)
    routed = life.order(gone, label="first")
    life.route(routed, label="second")
    life.release(routed)
    life.end_hold(life.hold(held, gone))
    life.hold(held)
    life.release(life.order(held))
    life.release(life.order(held))
    life.order(live)
    late_one = life.order(late)
    let_time_pass(customer, days=DAYS)
    life.release(late_one)
    life.release(life.order(again))
    before, balance = rows_of(database), customer.balance_micros()
    assert archive(database.engine, BEFORE, file) == counts(
        orders=3,  # not the one that is live, and not the one that was released late
        assignment=3,
        ledger_entry=6,  # the credit, and the five old orders
        hold=2,
        number_event=9,
    )
    moved, left = rows_in(file), rows_of(database)
    assert moved + left == before
    assert moved.keys().isdisjoint(left.keys())
    kinds = Counter(json.loads(row)["kind"] for table, row in moved if table == "number_event")
    assert kinds == {"routed": 1, "held": 3, "hold_released": 2, "released": 3}
    assert customer.balance_micros() == balance == CREDIT_MICROS - 6_000_000
    database.check()


def test_an_archive_of_nothing_makes_no_file(database, customer, life, file):
    life.release(life.order(*customer.numbers(1)))
    before = rows_of(database)
    assert archive(database.engine, BEFORE, file) == counts()
    assert rows_of(database) == before
    assert not file.exists()


def test_the_sale_goes_on_after_an_archive_and_the_next_archive_goes_on_too(database, customer, life, file, tmp_path):
    numbers = customer.numbers(3)
    life.release(life.order(numbers[0]))
    let_time_pass(customer, days=DAYS)
    # The newest ledger entry stays, and so does its order.
    assert archive(database.engine, BEFORE, file) == counts(ledger_entry=1)
    assert customer.balance_micros() == CREDIT_MICROS - 1_000_000
    life.release(life.order(numbers[1]))
    customer.credit(5_000_000)
    database.check()
    let_time_pass(customer, days=DAYS)
    life.order(numbers[0])
    assert archive(database.engine, BEFORE, tmp_path / "second") == counts(
        orders=2, assignment=2, ledger_entry=3, number_event=2
    )
    assert customer.balance_micros() == CREDIT_MICROS + 2_000_000
    assert tables(rows_in(file, tmp_path / "second")) == counts(orders=2, assignment=2, ledger_entry=4, number_event=2)
    database.check()
    life.release(life.order(numbers[1]))


def test_an_order_with_one_live_number_stays_whole_but_its_ledger_entry_goes(database, customer, life, file):
    first, second, third = customer.numbers(3)
    life.release(life.order(second))
    ids = buy(database.url, customer, first, second)
    life.release(ids[0])
    life.order(third)
    let_time_pass(customer, days=DAYS)
    assert archive(database.engine, BEFORE, file) == counts(orders=1, assignment=1, ledger_entry=3, number_event=1)
    database.check()


def test_an_order_whose_number_rested_later_stays(database, customer, life, file):
    first, second = customer.numbers(2)
    life.release(life.order(first), rest_ms=REST_MS + (DAYS - 50) * 86_400_000)
    life.order(second)
    let_time_pass(customer, days=DAYS)
    assert archive(database.engine, BEFORE, file) == counts(ledger_entry=2)
    let_time_pass(customer, days=60)
    assert archive(database.engine, BEFORE, file.with_name("later")) == counts(orders=1, assignment=1, number_event=1)


def test_an_order_whose_number_was_released_often_since_goes(database, customer, life, file):
    (number,) = customer.numbers(1)
    life.release(life.order(number))
    let_time_pass(customer, days=DAYS)
    life.release(life.order(number))
    life.release(life.order(number))
    assert archive(database.engine, BEFORE, file) == counts(orders=1, assignment=1, ledger_entry=2, number_event=1)


def test_a_key_whose_response_is_still_stored_sells_no_second_time(database, customer, life, file):
    numbers = customer.numbers(3)
    life.release(life.order(numbers[0]))
    kept = order_of(customer, numbers[1], idempotency=Idempotency("k", b"asked"))
    placed = place(database, kept)
    life.release(kept.assignment_ids[0])
    life.release(life.order(numbers[2]))
    let_time_pass(customer, days=DAYS)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE idempotency_key SET created_at = created_at - :by"), {"by": timedelta(DAYS)})
    # The orders after it stay, too.
    assert archive(database.engine, BEFORE, file) == counts(orders=1, assignment=1, ledger_entry=3, number_event=1)
    again = place(database, order_of(customer, numbers[1], idempotency=kept.idempotency))
    assert isinstance(again, Replayed)
    assert again.response == orders.order_response(placed)
    assert customer.owned() == set()
    database.check()
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM idempotency_key"))
    assert archive(database.engine, BEFORE, file.with_name("later")) == counts(orders=1, assignment=1, number_event=1)


def place(database, order):
    async def run():
        connection = await connect(database.url, Settings(), orders.STATEMENTS)
        try:
            return await orders.place(connection, [order], LIMITS)
        finally:
            await connection.close()

    (decision,) = asyncio.run(run())
    return decision


def test_a_hold_that_its_number_still_names_stays(database, customer, life, file):
    (number,) = customer.numbers(1)
    hold = life.hold(number)
    let_time_pass(customer, days=DAYS)
    assert archive(database.engine, BEFORE, file) == counts()
    database.check()
    life.order(number)
    assert archive(database.engine, BEFORE, file) == counts(ledger_entry=1, hold=1, number_event=1)
    assert ids_in(rows_in(file), "hold") == {str(hold)}


def test_a_ledger_that_is_damaged_is_archived_only_up_to_the_damage(damaged, file):
    customer = Customer.open(damaged.engine)
    life = Life(damaged, customer)
    for number in customer.numbers(5):
        life.release(life.order(number))
    let_time_pass(customer, days=DAYS)
    with damaged.engine.begin() as connection:
        connection.execute(text("UPDATE ledger_entry SET balance_micros = 7 WHERE entry_no = 3"))
    before = violations(damaged.engine)
    assert archive(damaged.engine, BEFORE, file) == counts(orders=1, assignment=1, ledger_entry=2, number_event=1)
    assert violations(damaged.engine) == before
    assert len(before) == 2
    with damaged.engine.begin() as connection:
        connection.execute(text("DELETE FROM ledger_entry WHERE entry_no = 3"))
    assert archive(damaged.engine, BEFORE, file.with_name("later")) == counts()
    assert "entry 3 is missing before entry 4" in violations(damaged.engine)[0]


# ---------------------------------------------------------------- many rows, in steps


@pytest.fixture
def many(database, monkeypatch):
    """Many old orders of several organizations, which an archive moves in many steps."""
    monkeypatch.setattr(archiving, "STEP_ROWS", 20)
    customers = [Customer.open(database.engine) for _ in range(3)]
    add_old_orders(database.engine, 300, TODAY - timedelta(days=DAYS), BEFORE + timedelta(days=50))
    database.check()
    return customers


def test_many_rows_go_in_steps(database, many, file):
    before, counted = rows_of(database), count(database.engine, BEFORE)
    balances = [customer.balance_micros() for customer in many]
    assert rows_of(database) == before
    moved = archive(database.engine, BEFORE, file)
    assert counted == {table: moved[table] for table in counted}
    assert min(moved[table] for table in ("orders", "assignment", "ledger_entry", "number_event")) > 100
    assert tables(rows_in(file)) == moved
    assert rows_in(file) + rows_of(database) == before
    assert [customer.balance_micros() for customer in many] == balances
    orders = "SELECT count(*) FROM orders WHERE created_at < :before"
    with database.engine.connect() as connection:
        left = connection.execute(text(orders), {"before": BEFORE}).scalar_one()
    # Those with a live number, and those that were released only after the date.
    assert left < 300 * 2 / 3 / LIVE_EVERY + 20
    assert indexes(database) == []


def test_an_archive_of_a_second_date_moves_the_rest(database, many, file):
    before = rows_of(database)
    first = archive(database.engine, BEFORE - timedelta(days=40), file)
    second = archive(database.engine, BEFORE, file.with_name("second"))
    assert all(first[table] and second[table] for table in ("orders", "assignment", "ledger_entry"))
    assert rows_in(file, file.with_name("second")) + rows_of(database) == before
    assert archive(database.engine, BEFORE, file.with_name("third")) == counts()


def test_the_file_is_private_and_each_step_is_in_it_before_it_is_committed(database, many, file, monkeypatch):
    write = archiving.ArchiveFile.write
    steps = []

    def write_and_look(self, lines):
        write(self, lines)
        before = rows_of(database)
        assert all(row in before for row in list(lines_of(file))[-len(lines) :])
        steps.append(len(lines))

    monkeypatch.setattr(archiving.ArchiveFile, "write", write_and_look)
    archive(database.engine, BEFORE, file)
    assert sum(steps) == rows_in(file).total()
    assert len(steps) >= 20
    assert max(steps) <= 3 * 20  # an order, its assignment and its event
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_step_ends_after_some_numbers_of_holds(database, customer, life, file, monkeypatch):
    monkeypatch.setattr(archiving, "STEP_ROWS", 20)
    for _ in range(5):
        life.end_hold(life.hold(*customer.numbers(10)))
    let_time_pass(customer, days=DAYS)
    write, steps = archiving.ArchiveFile.write, []

    def write_and_count(self, lines):
        steps.append(len(lines))
        write(self, lines)

    monkeypatch.setattr(archiving.ArchiveFile, "write", write_and_count)
    assert archive(database.engine, BEFORE, file) == counts(hold=5, number_event=100)
    assert steps == [42, 42, 21]  # a hold of ten numbers has twenty events


MOMENTS = ("within the write", "before the rows are on disk", "before the commit", "after the commit")


@pytest.mark.parametrize("writes", [1, 8, 15])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_loses_nothing_and_the_next_archive_goes_on(database, many, file, moment, writes):
    before = rows_of(database)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, moment, str(writes), str(file), BEFORE.date().isoformat()],
        env={**os.environ, "DATABASE_URL": database.url},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    wait_until(lambda: not sessions(database))
    database.check()
    in_both = rows_in(file) & rows_of(database)
    assert bool(in_both) == (moment in MOMENTS[1:3]) or moment == MOMENTS[0]
    assert rows_in(file) + rows_of(database) - in_both == before
    archive(database.engine, BEFORE, file.with_name("second"))
    database.check()
    both = rows_in(file, file.with_name("second"))
    assert both - in_both + rows_of(database) == before
    assert in_both <= rows_in(file.with_name("second"))
    assert indexes(database) == []


KILLED = """
import os, signal, sys
from server import cli
from server.store import archive
from server.store.archive_file import ArchiveFile

moment, writes, file, before = sys.argv[1:]
archive.STEP_ROWS, archive.PAUSE_PER_STEP = 20, 0
left, write_lines, write, fsync = int(writes), ArchiveFile.write, os.write, os.fsync

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def write_lines_and_die(self, lines):
    global left
    left -= 1
    if left < 0:
        die()
    write_lines(self, lines)
    if left == 0 and moment == "before the commit":
        die()

def write_and_die(number, data):
    if left == 0 and moment == "within the write":
        write(number, data[:len(data) // 2])
        die()
    return write(number, data)

def fsync_and_die(number):
    if left == 0 and moment == "before the rows are on disk":
        die()
    fsync(number)

ArchiveFile.write, os.write, os.fsync = write_lines_and_die, write_and_die, fsync_and_die
sys.argv = ["ordernumbers", "archive", "--before", before, "--to", file]
cli.main()
"""


def test_a_file_that_cannot_grow_moves_nothing_of_the_last_step(ordernumbers, database, many, file):
    """As on a full disk, the write ends in the middle."""
    before = rows_of(database)
    failed = ordernumbers.process(
        *("archive", "--before", BEFORE.date().isoformat(), "--to", file),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4500, 4500)),
    )
    assert (failed.returncode, failed.stderr.decode()) == (1, f"ordernumbers: cannot write {file}: File too large\n")
    assert rows_in(file)
    assert rows_in(file) + rows_of(database) == before
    assert is_whole(file)


def test_sigterm_ends_it_between_two_steps_and_removes_the_indexes(database, many, file):
    before = rows_of(database)
    command = [sys.executable, "-c", SLOW, str(file), BEFORE.date().isoformat()]
    process = subprocess.Popen(command, env={**os.environ, "DATABASE_URL": database.url})
    wait_until(lambda: len(indexes(database)) == len(archiving.INDEXES))
    process.terminate()
    assert process.wait(60) == 130
    assert indexes(database) == []
    assert is_whole(file)
    moved, left = rows_in(file), rows_of(database)
    assert moved + left - (moved & left) == before
    assert archive(database.engine, BEFORE, file.with_name("second"))["orders"]


SLOW = """
import sys
from server import cli
from server.store import archive

file, before = sys.argv[1:]
archive.STEP_ROWS, archive.PAUSE_PER_STEP = 20, 20
sys.argv = ["ordernumbers", "archive", "--before", before, "--to", file]
cli.main()
"""


def is_whole(file):
    """Whether gzip can read the file to its end."""
    with file.open() as stdin:
        return subprocess.run(["gzip", "--test"], stdin=stdin, check=False).returncode == 0


class Stepwise:
    """An archive in a thread, which takes one step at a time."""

    def __init__(self, monkeypatch, engine, file):
        self._may_step, self._has_stepped = threading.Semaphore(0), threading.Semaphore(0)
        self.is_done = False
        monkeypatch.setattr(archiving.time, "sleep", self._wait)
        self._thread = threading.Thread(target=self._run, args=(engine, file))
        self._thread.start()
        self._has_stepped.acquire()

    def step(self):
        if not self.is_done:
            self._may_step.release()
            self._has_stepped.acquire()

    def finish(self):
        while not self.is_done:
            self.step()
        self._thread.join()

    def _run(self, engine, file):
        try:
            archive(engine, BEFORE, file)
        finally:
            self.is_done = True
            self._has_stepped.release()

    def _wait(self, _seconds):
        self._has_stepped.release()
        self._may_step.acquire()


@pytest.mark.parametrize(
    ("statements", "starts_with_orders"), [("SELECT", False), ("entries_until", False), ("number_count", True)]
)
def test_the_check_finds_nothing_while_an_archive_runs(
    database, many, file, monkeypatch, statements, starts_with_orders
):
    """Between two of its statements, a step moves what the first of them has read."""
    monkeypatch.setattr(check, "RANGE_ROWS", 15)
    stepwise = Stepwise(monkeypatch, admin_engine(database.url), file)
    while starts_with_orders and len(indexes(database)) < len(archiving.INDEXES):
        stepwise.step()
    steps, is_turn = 0, cycle([False, True])

    def step_before_every_second_statement(connection, cursor, statement, *_):
        nonlocal steps
        if statements in statement and next(is_turn):
            steps += not stepwise.is_done
            stepwise.step()

    event.listen(database.engine, "before_cursor_execute", step_before_every_second_statement)
    assert violations(database.engine) == []
    event.remove(database.engine, "before_cursor_execute", step_before_every_second_statement)
    stepwise.finish()
    assert steps > 5
    assert tables(rows_in(file))["orders"] > 100


def test_the_file_can_be_loaded_into_tables(database, many, file):
    """As docs/operations.md has it."""
    before = rows_of(database)
    archive(database.engine, BEFORE, file)
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE line (line jsonb)"))
        copy = r"COPY line FROM STDIN WITH (FORMAT csv, QUOTE E'\x01', DELIMITER E'\x02')"
        with connection.connection.cursor().copy(copy) as lines, gzip.open(file) as archived:
            lines.write(archived.read())
        for table in TABLES:
            load = f"""
                INSERT INTO {table}
                SELECT DISTINCT archived.*
                FROM line, jsonb_populate_record(NULL::{table}, line -> 'row') AS archived
                WHERE line ->> 'table' = :table
            """
            connection.execute(text(load), {"table": table})
        connection.execute(text("DELETE FROM archive"))
    assert rows_of(database) == before


# ---------------------------------------------------------------- beside orders


def test_orders_go_on_beside_an_archive_and_archived_orders_are_not_found(service, file, monkeypatch):
    monkeypatch.setattr(archiving, "STEP_ROWS", 2)
    customer = Customer.open(service.database.engine)
    life = Life(service.database, customer)
    for number in customer.numbers(20):
        life.release(life.order(number))
    (number,) = customer.numbers(1)
    live = str(life.order(number, label="live"))
    let_time_pass(customer, days=DAYS)
    named = {"id": customer.id}
    with service.database.engine.connect() as connection:
        query = text("SELECT id::text FROM orders WHERE organization_id = :id ORDER BY id")
        old = connection.execute(query, named).scalars().all()
    with BackgroundOrders(service.rest_url, customer) as background:
        wait_until(lambda: background.sold)
        moved = archive(service.database.engine, BEFORE, file)
        background.enough.set()
    assert (moved["orders"], moved["ledger_entry"]) == (20, 22)
    assert background.refused == []
    with httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client:
        rest = Rest(client)
        assert [rest.rpc("GetOrder", customer.key, id=id_).status for id_ in old[:20]] == [404] * 20
        # The ledger entry of this one is in the file. Its order is not.
        (row,) = rest.rpc("GetOrder", customer.key, id=old[20]).body["data"]
        assert (row["id"], row["number"], row["label"]) == (live, number, "live")
        assert rest.rpc("GetNumber", customer.key, id=live).body["data"] == row
        assert rest.rpc("ListNumbers", customer.key, search=number).body["data"] == [row]
        assert rest.rpc("UpdateNumber", customer.key, id=live, label="later").status == 200
        assert rest.rpc("ReleaseNumber", customer.key, id=live).status == 200
        assert rest(customer.key, numbers=[number]).status == 200
    assert ids_in(rows_in(file), "orders") == set(old[:20])


def test_a_second_archive_at_the_same_time_is_refused(database, many, file, monkeypatch):
    stepwise = Stepwise(monkeypatch, admin_engine(database.url), file)
    second = file.with_name("second")
    with pytest.raises(OperatorError, match="another archive of this database is running"):
        archive(database.engine, BEFORE, second)
    assert not second.exists()
    stepwise.finish()
    assert rows_in(file)


def test_orders_stay_if_the_indexes_for_them_cannot_be_built(database, many, file, monkeypatch):
    monkeypatch.setattr(archiving, "LOCK_SECONDS_MAX", 1)
    with database.engine.connect() as long:
        long.execute(text("LOCK assignment IN ROW EXCLUSIVE MODE"))  # as an order does
        with pytest.raises(OperatorError, match="not all was archived"):
            archive(database.engine, BEFORE, file)
    assert tables(rows_in(file))["ledger_entry"]
    assert tables(rows_in(file))["orders"] == 0
    assert archive(database.engine, BEFORE, file.with_name("second"))["orders"]
    assert indexes(database) == []


def test_an_index_that_cannot_be_removed_changes_no_result(database, many, file, monkeypatch, caplog):
    monkeypatch.setattr(archiving, "LOCK_SECONDS_MAX", 1)
    drop = archiving.indexes.drop

    def drop_beside_an_order(connection, name):
        with database.engine.connect() as long:
            long.execute(text("LOCK assignment, ledger_entry IN ROW EXCLUSIVE MODE"))  # as an order does
            drop(connection, name)

    monkeypatch.setattr(archiving.indexes, "drop", drop_beside_an_order)
    assert archive(database.engine, BEFORE, file)["orders"]
    assert caplog.text.count("stays until the next archive") == len(archiving.INDEXES)
    monkeypatch.undo()
    archive(database.engine, BEFORE, file.with_name("second"))
    assert indexes(database) == []


# ---------------------------------------------------------------- the command


def test_the_command_counts_and_then_moves(ordernumbers, customer, life, file):
    life.release(life.order(*customer.numbers(1)))
    life.order(*customer.numbers(1))
    let_time_pass(customer, days=DAYS)
    date = BEFORE.date().isoformat()
    expected = {"orders": 1, "assignment": 1, "ledger_entry": 2, "hold": 0}
    assert ordernumbers("archive", "--before", date, "--to", file, "--dry-run") == {
        "before": date,
        "is_dry_run": True,
        "rows": expected,
    }
    assert not file.exists()
    _, out, _ = ordernumbers.run("archive", "--before", date, "--dry-run")
    assert out == "1 orders, 1 assignments, 2 ledger entries, 0 holds would be moved.\n"
    assert ordernumbers.run("archive", "--before", date, "--to", file) == (
        0,
        f"1 orders, 1 assignments, 2 ledger entries, 0 holds, 1 events were moved to {file}.\n",
        "",
    )
    _, out, _ = ordernumbers.run("archive", "--before", date, "--to", file.with_name("second"))
    assert out == f"Nothing that is older than {date} can be moved.\n"


@pytest.mark.parametrize("date", ["", "yesterday", "2026-13-01", "20260101", "2026-W01-1", "2026-01-01T00:00:00"])
def test_what_is_no_date_is_refused(ordernumbers, file, date):
    found = ordernumbers.refusal("archive", "--before", date, "--to", file)
    assert found == f"{date!r} is not a date. Write it like 2026-01-31"


@pytest.mark.parametrize("days", [-1000, 0, 89])
def test_a_date_that_is_too_young_is_refused(ordernumbers, file, days):
    date = (TODAY - timedelta(days=days)).date().isoformat()
    for options in ((), ("--dry-run",)):
        found = ordernumbers.refusal("archive", "--before", date, "--to", file, *options)
        assert found == f"{date} is too young: it must be at least 90 days ago"
    assert not file.exists()


def test_a_file_that_exists_is_refused_and_stays_as_it_is(ordernumbers, file):
    file.write_text("mine")
    found = ordernumbers.refusal("archive", "--before", "2020-01-01", "--to", file)
    assert found == f"{file} exists already. Each archive needs a new file"
    assert file.read_text() == "mine"


def test_a_file_that_cannot_be_written_is_refused(ordernumbers, tmp_path):
    found = ordernumbers.refusal("archive", "--before", "2020-01-01", "--to", tmp_path / "no" / "file")
    assert found == f"cannot write {tmp_path / 'no' / 'file'}: No such file or directory"
    found = ordernumbers.refusal("archive", "--before", "2020-01-01")
    assert found == "--to must name a new file, unless --dry-run is given"


# ---------------------------------------------------------------- the history


def test_the_history_says_that_older_events_may_be_archived(ordernumbers, database, customer, life, file):
    number, other = customer.numbers(2)
    life.release(life.order(number), rest_ms=0)
    life.end_hold(life.hold(number))
    life.release(life.order(number))
    life.order(other)
    let_time_pass(customer, days=DAYS)
    archive(database.engine, BEFORE, file)
    life.order(number)
    events = ordernumbers("number", "history", number)["events"]
    assert [event["kind"] for event in events] == ["imported", "archived", "assigned"]
    assert events[1]["at"] == f"{BEFORE:%Y-%m-%dT%H:%M:%SZ}"
    lines = ordernumbers.run("number", "history", number)[1].splitlines()
    assert lines[1][22:] == "what is older may be in the file of an archive"


def test_the_history_of_a_number_that_was_imported_later_is_complete(ordernumbers, database, customer, life, file):
    first, second = customer.numbers(2)
    life.release(life.order(first))
    life.order(second)
    let_time_pass(customer, days=DAYS)
    archive(database.engine, BEFORE, file)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE phone_number SET imported_at = now() WHERE number = :n"), {"n": second})
    told = ordernumbers("number", "history", second)["events"]
    assert [event["kind"] for event in told] == ["imported", "assigned"]
