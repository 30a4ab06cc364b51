"""The statements of the hot path, on a migrated database: each can be prepared, and returns what its reader expects."""

import re
from importlib.resources import files

import psycopg
import pytest
from psycopg.pq import ExecStatus

from server.order_connection import FIND_RUNNING
from server.rules.values import Account, Campaign, KeyGrant, Number, StoredResponse
from server.store import connection, idempotency, orders, reads
from server.store.statements import JsonRows, Statement, _sections

ROWS = {
    "lock_numbers": ("number", *Number._fields),
    "lock_numbers_without_response": ("number", *Number._fields),
    "lock_organizations": ("id", *Account._fields),
    "read_existing_numbers": ("number",),
    "read_keys": ("now", "id", *KeyGrant._fields),
    "read_campaigns": ("organization_id", "id", *Campaign._fields),
    "read_stored_responses": ("organization_id", "key", *StoredResponse._fields),
    "find_valid_keys": reads.Principal._fields,
}
"""By statement, the columns that are read by their position, as the tuples that read them name them."""
# Only whether there is a row, or one single value, is read of these.
UNNAMED = {"limit_transaction", "find_order", "find_running", "identify_backend"}

STATEMENTS = (
    *(*orders.STATEMENTS, FIND_RUNNING),
    *(connection.ROLLBACK, connection.IDENTIFY_BACKEND, reads.FIND_VALID_KEYS),
    *(idempotency.PURGE, idempotency.WAIT_FOR_NO_STANDBY),
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
        assert re.search(r"ORDER BY (phone_number\.number|organization\.id)\nFOR NO KEY UPDATE", statement.text)


def test_the_purge_deletes_as_many_rows_as_a_step_has():
    assert f"LIMIT {idempotency.STEP_ROWS}\n" in idempotency.PURGE.text
