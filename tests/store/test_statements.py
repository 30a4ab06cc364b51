"""The statements of the hot path, on a migrated database: each can be prepared, and returns what its reader expects."""

import re
from importlib.resources import files

import psycopg
import pytest
from psycopg.pq import ExecStatus

from server.rules.values import (
    Account,
    AssignedNumber,
    AvailableNumber,
    Campaign,
    Held,
    KeyGrant,
    Number,
    StoredResponse,
)
from server.store import connection, idempotency, orders, reads, writes
from server.store.statements import JsonRows, Statement, _sections
from server.write_connection import FIND_RUNNING

NUMBER = ("number", *Number._fields)
READS = {
    "list_numbers": AssignedNumber._fields,
    "get_number": AssignedNumber._fields,
    "get_order": ("order_id", "quantity", *AssignedNumber._fields),
    "get_hold": Held._fields,
    "search": AvailableNumber._fields,
    "search_digits": AvailableNumber._fields,
}
"""By statement, the columns after the scopes of the key."""
ROWS = {
    "lock_numbers": NUMBER,
    "lock_numbers_without_response": NUMBER,
    "lock_chosen": NUMBER,
    "read_numbers": NUMBER,
    "lock_organizations": ("id", *Account._fields),
    "read_account": ("id", *Account._fields),
    "read_existing_numbers": ("number",),
    "read_keys": ("now", "id", *KeyGrant._fields),
    "read_campaigns": ("organization_id", "id", *Campaign._fields),
    "read_stored_responses": ("organization_id", "key", *StoredResponse._fields),
    "read_hold": Held._fields,
    "read_assignments": (*AssignedNumber._fields, "is_live", "is_resting"),
    "find_valid_keys": reads.Principal._fields,
    **{name: ("scopes", *columns) for name, columns in READS.items()},
}
"""By statement, the columns that are read by their position, as the tuples that read them name them."""
# Only whether there is a row, or one single value, is read of these. The locks are all that matters of the last two.
UNNAMED = {
    *("limit_transaction", "limit_read", "find_order", "find_write", "find_running", "identify_backend", "count_held"),
    *("lock_numbers_of_hold", "lock_numbers_of_assignments"),
}

STATEMENTS = tuple(
    dict.fromkeys(
        (
            *(*orders.STATEMENTS, *writes.STATEMENTS, *reads.QUERIES, FIND_RUNNING),
            *(connection.ROLLBACK, connection.IDENTIFY_BACKEND),
            *(idempotency.PURGE, idempotency.WAIT_FOR_NO_STANDBY),
        )
    )
)


def columns_of(database, statement):
    with psycopg.connect(database.url) as opened:
        pgconn = opened.pgconn
        prepared = pgconn.prepare(b"s", statement.sql)
        assert prepared.status == ExecStatus.COMMAND_OK, prepared.error_message
        described = pgconn.describe_prepared(b"s")
        assert described.nparams == len(statement.parameters)
        return tuple(described.fname(i).decode() for i in range(described.nfields))


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.name.decode())
def test_a_statement_returns_the_columns_that_its_reader_names(database, statement):
    name = statement.name.decode().removesuffix("_skip_locked")
    columns = columns_of(database, statement)
    if name not in UNNAMED:
        assert columns == ROWS.get(name, ())


def test_every_section_of_the_sql_files_is_used():
    names = {statement.name.decode().removesuffix("_skip_locked") for statement in STATEMENTS}
    folder = files("server.store") / "sql"
    sections = [name for file in folder.iterdir() for name in _sections(file.name.removesuffix(".sql"))]
    assert sorted(sections) == sorted(names)


def test_a_value_that_rows_lack_is_noticed_when_they_are_made():
    statement = Statement("s", "SELECT * FROM json_to_recordset(:'rows'::json) AS r (number_type text, color text)")
    with pytest.raises(AttributeError, match="color"):
        JsonRows(statement, "rows").json([Number("local", True, True, 1, None, None, None)])


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.name.decode())
def test_locks_are_sorted_by_columns_of_the_table(statement):
    # A plain name would mean a column of the result: a text, in the order of the database's locale.
    if "FOR NO KEY UPDATE" in statement.text:
        sorted_locks = r"ORDER BY (phone_number\.number|organization\.id)\n(LIMIT .*\n)?FOR NO KEY UPDATE"
        assert re.search(sorted_locks, statement.text)


def test_the_purge_deletes_as_many_rows_as_a_step_has():
    assert f"LIMIT {idempotency.STEP_ROWS}\n" in idempotency.PURGE.text
