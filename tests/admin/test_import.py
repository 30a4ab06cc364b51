"""Importing numbers: every row is checked, all rows are imported or none, and assignments never change."""

import json
import os
import pty
import signal
import subprocess
import sys

import pytest
from sqlalchemy import text

from server.errors import OperatorError
from server.store.inventory import BAD_ROWS_SHOWN_MAX, STAGE_ROWS, WRITE_ROWS, BadRow, import_csv, stats
from tests.admin.conftest import COMMAND, sell
from tests.support.inventory import let_time_pass
from tests.support.life import Life

HEADER = "number,number_type,sms_enabled,mms_enabled,price"


@pytest.fixture
def import_lines(database):
    def run(*rows, header=HEADER, **options):
        return import_csv(database.engine, [f"{line}\n" for line in (header, *rows)], **options)

    return run


@pytest.fixture
def inventory_rows(database):
    def read(columns="number, number_type, sms_enabled, mms_enabled, price_micros"):
        with database.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(f"SELECT {columns} FROM phone_number ORDER BY 1"))]

    return read


def numbers(count, **row):
    columns = {"type": "local", "price": "1", **row}
    return [f"+1415{i:07},{columns['type']},true,false,{columns['price']}" for i in range(2_000_000, 2_000_000 + count)]


def test_numbers_are_added(import_lines, inventory_rows):
    imported = import_lines("+14155550123,local,true,false,1.00", "+18005550100,toll_free,false,true,0.000001")
    assert imported == (2, 0, 0, 0, [])
    assert inventory_rows() == [
        ("+14155550123", "local", True, False, 1_000_000),
        ("+18005550100", "toll_free", False, True, 1),
    ]


def test_columns_may_have_any_order_and_quotes(import_lines, inventory_rows):
    import_lines(
        '"2.5","+14155550123",false,"local",true', "", header="price,number,mms_enabled,number_type,sms_enabled"
    )
    assert inventory_rows() == [("+14155550123", "local", True, False, 2_500_000)]


def test_short_codes_follow_the_rules_of_their_country(import_lines, inventory_rows):
    imported = import_lines("+172345,short_code,true,false,1", "+172346,local,true,false,1", skip_bad=True)
    assert imported.bad == [BadRow(3, "number +172346 is not a possible number")]
    assert inventory_rows("number") == [("+172345",)]


BAD_ROWS = {
    "14155550123,local,true,false,1": "number '14155550123' is not E.164",
    "+1415555０123,local,true,false,1": "number '+1415555０123' is not E.164",
    "+014155550123,local,true,false,1": "number '+014155550123' is not E.164",
    "+1415555012345678,local,true,false,1": "number '+1415555012345678' is not E.164",
    " +14155550123,local,true,false,1": "number ' +14155550123' is not E.164",
    "+21012345678,local,true,false,1": "number +21012345678 has an unknown country code",
    "+141555501,local,true,false,1": "number +141555501 is not a possible number",
    "+114155550123,local,true,false,1": "number +114155550123 must be written +14155550123",
    "+14155550123,mobile,true,false,1": "number_type 'mobile' is not one of local, toll_free, short_code",
    "+14155550123,local,yes,false,1": "sms_enabled must be true or false, not 'yes'",
    "+14155550123,local,true,FALSE,1": "mms_enabled must be true or false, not 'FALSE'",
    "+14155550123,local,true,false,-1.00": "price -1.00 is negative",
    "+14155550123,local,true,false,1.0000001": "price '1.0000001' is not an amount",
    "+14155550123,local,true,false,": "price '' is not an amount",
    "+14155550123,local,true,false": "4 fields instead of 5",
    "+14155550123,local,true,false,1,": "6 fields instead of 5",
}


def test_every_bad_row_is_reported_with_its_line_and_nothing_is_imported(import_lines, inventory_rows):
    imported = import_lines("+14155550100,local,true,false,1", *BAD_ROWS)
    assert imported[:4] == (0, 0, 0, len(BAD_ROWS))
    assert [row.line for row in imported.bad] == list(range(3, 3 + len(BAD_ROWS)))
    for row, reason in zip(imported.bad, BAD_ROWS.values(), strict=True):
        assert row.reason.startswith(reason)
    assert inventory_rows() == []


def test_a_number_of_a_range_reserved_for_tests_is_imported(import_lines):
    assert import_lines("+15555550123,local,true,false,1").added == 1


def test_good_rows_are_imported_if_bad_rows_are_skipped(import_lines, inventory_rows):
    imported = import_lines("+14155550100,local,true,false,1", "rubbish", skip_bad=True)
    assert imported == (1, 0, 0, 1, [BadRow(3, "1 fields instead of 5")])
    assert inventory_rows("number") == [("+14155550100",)]


def test_a_repeated_number_is_a_bad_row_and_its_first_line_counts(import_lines, inventory_rows):
    lines = [f"+14155550100,local,true,false,{price}" for price in (7, 8, 9)]
    repeated = [BadRow(line, "number +14155550100 is already on line 2") for line in (3, 4)]
    assert import_lines(*lines) == (0, 0, 0, 2, repeated)
    assert import_lines(*lines, skip_bad=True) == (1, 0, 0, 2, repeated)
    assert inventory_rows("price_micros") == [(7_000_000,)]


def test_all_bad_rows_are_counted_and_the_first_are_shown(import_lines):
    good = numbers(3)
    repeated = [good[1]] * (BAD_ROWS_SHOWN_MAX + 1)
    imported = import_lines(good[0], *good, *["rubbish"] * STAGE_ROWS, *repeated)
    assert imported.bad_count == STAGE_ROWS + 1 + len(repeated)
    assert len(imported.bad) == BAD_ROWS_SHOWN_MAX
    assert imported.bad[:2] == [(3, f"number {good[0][:12]} is already on line 2"), (6, "1 fields instead of 5")]


def test_an_update_changes_type_capabilities_and_price_but_not_the_assignment(
    database, import_lines, inventory_rows, customer
):
    import_lines(*numbers(3))
    sold, held, free = (number for (number,) in inventory_rows("number"))
    sell(customer, sold)
    Life(database, customer).hold(held)
    owners = inventory_rows("number, assignment_id, held_by, free_at, hold_id, rest_until, imported_at")
    rows = [f"{number},toll_free,false,true,5" for number in (sold, held, free)]
    assert import_lines(*rows) == (0, 3, 0, 0, [])
    assert inventory_rows() == [(n, "toll_free", False, True, 5_000_000) for n in (sold, held, free)]
    assert inventory_rows("number, assignment_id, held_by, free_at, hold_id, rest_until, imported_at") == owners


def test_a_change_of_any_single_column_updates_the_row(import_lines):
    row = ["+14155550100", "local", "true", "true", "1"]
    import_lines(",".join(row))
    for column, value in ((1, "toll_free"), (2, "false"), (3, "false"), (4, "1.000001")):
        row[column] = value
        assert import_lines(",".join(row))[:3] == (0, 1, 0)


def test_unchanged_rows_are_not_locked(database, import_lines):
    import_lines(*numbers(3))
    with database.engine.begin() as order:
        order.execute(text("SET LOCAL idle_in_transaction_session_timeout = '20s'"))
        order.execute(text("SELECT FROM phone_number FOR UPDATE"))
        assert import_lines(*numbers(3))[:3] == (0, 0, 3)


def test_many_numbers_are_written_in_chunks(import_lines, inventory_rows):
    rows = numbers(2 * WRITE_ROWS + 1)
    steps = []
    imported = import_lines(*reversed(rows), progress=lambda *step: steps.append(step))
    assert imported[:3] == (len(rows), 0, 0)
    assert inventory_rows("number") == [(row.split(",")[0],) for row in rows]
    written = [("writing", done, len(rows)) for done in (WRITE_ROWS, 2 * WRITE_ROWS, len(rows))]
    assert steps == [("checking rows", len(rows), None), *written]


def test_an_interrupted_import_is_completed_by_another_one(import_lines, inventory_rows):
    rows = numbers(2 * WRITE_ROWS)

    def interrupt(step, *_):
        if step == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_lines(*rows, progress=interrupt)
    assert len(inventory_rows("number")) == WRITE_ROWS
    assert import_lines(*rows)[:3] == (WRITE_ROWS, 0, WRITE_ROWS)


def test_the_planner_gets_statistics_of_the_new_numbers(database, import_lines):
    import_lines(*numbers(10))
    with database.engine.connect() as connection:
        rows = connection.execute(text("SELECT reltuples FROM pg_class WHERE relname = 'phone_number'"))
        assert rows.scalar_one() == 10


def test_wrong_headers_are_refused(import_lines):
    message = f"the first line must name the columns {HEADER}, but it is "
    for header in (
        "number",
        HEADER + ",colour",
        HEADER.replace("price", "number"),
        HEADER.upper(),
        "+14155550123,local",
    ):
        with pytest.raises(OperatorError, match=f"^{message}{header}$".replace("+", r"\+")):
            import_lines("+14155550123,local,true,false,1", header=header)


def test_invalid_csv_is_refused(import_lines):
    with pytest.raises(OperatorError, match=r"^line 3 is not valid CSV: "):
        import_lines("+14155550100,local,true,false,1", '"+14155550123"0,local,true,false,1')


# ---------------------------------------------------------------- the command


def test_a_file_is_imported_and_counted(ordernumbers, tmp_path):
    file = tmp_path / "numbers.csv"
    file.write_text("\ufeff" + "\r\n".join([HEADER, *numbers(2)]), encoding="utf-8")
    result = {"added": 2, "updated": 0, "unchanged": 0, "bad_count": 0, "bad": []}
    assert ordernumbers("inventory", "import", file) == result
    assert ordernumbers.run("inventory", "import", file) == (0, "0 added, 0 updated, 2 unchanged, 0 bad\n", "")
    status, out, _ = ordernumbers.run("inventory", "stats")
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["type", "available", "assigned", "held", "resting"],
        ["local", "2", "0", "0", "0"],
        ["toll_free", "0", "0", "0", "0"],
        ["short_code", "0", "0", "0", "0"],
    ]


def test_the_command_fails_if_there_are_bad_rows(ordernumbers, tmp_path):
    file = tmp_path / "numbers.csv"
    file.write_text("\n".join([HEADER, *numbers(1), "rubbish"]))
    status, out, err = ordernumbers.run("inventory", "import", file, "--json")
    reason = "nothing was imported, because of 1 bad row (--skip-bad imports the others)"
    bad = {"bad_count": 1, "bad": [{"line": 3, "reason": "1 fields instead of 5"}]}
    assert (status, out, json.loads(err)) == (1, "", {"error": reason, **bad})
    printed = f"line 3: 1 fields instead of 5\nordernumbers: {reason}\n"
    assert ordernumbers.run("inventory", "import", file) == (1, "", printed)
    assert ordernumbers("inventory", "stats")["local"]["available"] == 0
    done = {"added": 1, "updated": 0, "unchanged": 0, **bad}
    assert ordernumbers("inventory", "import", file, "--skip-bad") == done


def test_stdin_is_read(ordernumbers):
    lines = "\n".join([HEADER, *numbers(2)]).encode()
    done = ordernumbers.process("inventory", "import", "-", "--json", input=lines)
    assert (done.returncode, done.stderr, json.loads(done.stdout)["added"]) == (0, b"", 2)


def test_an_unreadable_file_is_refused_with_its_name(ordernumbers, tmp_path):
    def refusal(file, content=None):
        if content is not None:
            file.write_bytes(content)
        return ordernumbers.refusal("inventory", "import", file)

    file = tmp_path / "numbers.csv"
    assert refusal(file) == f"cannot read {file}: No such file or directory"
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Is a directory"
    assert refusal(file, b"") == f"the first line must name the columns {HEADER}, but it is empty"
    assert refusal(file, HEADER.encode() + b"\n\xff\xfe") == "the file is not valid UTF-8 after line 0"


def test_progress_is_shown_on_a_terminal_only(ordernumbers, tmp_path, database):
    file = tmp_path / "numbers.csv"
    file.write_text("\n".join([HEADER, *numbers(2)]))
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    command = [COMMAND, "inventory", "import", str(file), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, timeout=60, check=True)
    os.close(theirs)
    assert json.loads(done.stdout)["added"] == 2
    assert b"writing" in os.read(ours, 1 << 16)
    os.close(ours)


IMPORT_AND_DIE = """
import os, signal, sys
from server.store import inventory
from server.store.engine import admin_engine

def die(step, *_):
    if step == "writing":
        os.kill(os.getpid(), signal.SIGKILL)

inventory.import_csv(admin_engine(sys.argv[1]), open(sys.argv[2]), progress=die)
"""


def test_a_killed_import_leaves_no_table_behind_and_can_be_completed(ordernumbers, tmp_path, database):
    file = tmp_path / "numbers.csv"
    file.write_text("\n".join([HEADER, *numbers(WRITE_ROWS + 1)]))
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_AND_DIE, database.url, file]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    result = ordernumbers("inventory", "import", file)
    assert (result["added"], result["unchanged"]) == (1, WRITE_ROWS)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM pg_tables WHERE tablename = 'import_row'")).scalar() == 0


def test_stats_count_the_numbers_of_each_type_and_state(database, import_lines, customer):
    import_lines(*numbers(9), "+18005550100,toll_free,true,false,1")
    life, rows = Life(database, customer), [row.split(",")[0] for row in numbers(9)]
    life.hold(rows[0])
    life.release(life.order(rows[1]))
    let_time_pass(customer, hours=2)  # from here on these two are available
    for number in rows[2:4]:
        life.order(number)
    life.hold(*rows[4:6])
    life.hold(*rows[6:8])
    for number in rows[6:8]:
        life.release(life.order(number))
    life.hold(rows[7])  # it rests too
    with database.engine.begin() as connection:
        assert stats(connection) == {
            "local": {"available": 3, "assigned": 2, "held": 2, "resting": 2},
            "toll_free": {"available": 1, "assigned": 0, "held": 0, "resting": 0},
            "short_code": {"available": 0, "assigned": 0, "held": 0, "resting": 0},
        }
