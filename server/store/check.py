"""The check: do the invariants of numbers, their history, orders, balances and the ledger hold? Are commits durable?

Orders may run during the check and cause no false findings. Most findings come from one statement, which sees one
snapshot. The others concern rows that only an archive deletes. The rows that must exist with them are read later.

Each statement reads one range of keys only. A long snapshot would stop vacuum from cleaning up the row of a busy
organization.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from server.store import invariants, life_invariants
from server.store.engine import execute_alone
from server.store.invariants import TableCheck
from server.store.pairing import wrong_orders
from server.store.stored_responses import wrong_responses

TABLES = (*invariants.TABLES, *life_invariants.TABLES)
RANGE_ROWS = 5000
"""The rows of the table that one statement reads. It takes some tens of milliseconds."""

_NIL_UUID = UUID(int=0)
_BEFORE_ALL_KEYS: Mapping[str, Any] = {
    "number": "",
    "key": "",
    "organization_id": _NIL_UUID,
    "id": _NIL_UUID,
    "entry_no": -(2**63),  # below 1, to find entries with a wrong number too
}

_RISKS_WHEN_OFF = {
    "fsync": "a crash of the machine may lose acknowledged orders and damage the database",
    "full_page_writes": "a crash of the machine may damage the database",
    "synchronous_commit": "a crash may lose acknowledged commits of programs that do not turn it on themselves",
}


def violations(engine: Engine) -> list[str]:
    """Return a sentence for each row that breaks an invariant. Safe to run while orders run."""
    # Autocommit, so that each statement has its own short snapshot.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # A range is a few rows of a table that may be large, so index nested loops are always right.
        # With old statistics the planner may choose something else.
        for plan in ("seqscan", "bitmapscan", "material", "hashjoin", "mergejoin"):
            connection.execute(text(f"SET enable_{plan} = off"))
        found = chain.from_iterable(_violations_in(connection, table) for table in TABLES)
        return [*found, *wrong_orders(connection, RANGE_ROWS), *wrong_responses(connection)]


def durability(engine: Engine) -> list[str]:
    """Return a sentence for each database setting that lets a crash lose acknowledged commits."""
    # reset_val is what other sessions start with. Our own session may have changed the current value.
    query = text("SELECT name FROM pg_settings WHERE name = ANY(:names) AND reset_val = 'off' ORDER BY name")
    with engine.connect() as connection:
        off = connection.execute(query, {"names": list(_RISKS_WHEN_OFF)}).scalars().all()
    return [f"the database setting {name} is off: {_RISKS_WHEN_OFF[name]}" for name in off]


# ---------------------------------------------------------------- invariants of one table


def _violations_in(connection: Connection, table: TableCheck) -> Iterator[str]:
    in_range = f"{_columns(table)} > {_values('after', table)} AND {_columns(table)} <= {_values('upto', table)}"
    statements = [(invariant.finding, invariant.sql.format(in_range=in_range)) for invariant in table.invariants]
    for bounds in _ranges(connection, table):
        for finding, sql in statements:
            for row in execute_alone(connection, sql, bounds).mappings():
                yield finding.format(**row)


def _ranges(connection: Connection, table: TableCheck) -> Iterator[dict[str, Any]]:
    """Return the bounds of each range of keys: greater than `after_…` and at most `upto_…`."""
    columns = ", ".join(table.key)
    # Reads the last key of the next RANGE_ROWS rows.
    sql = f"""
        SELECT {columns}
        FROM (
          SELECT {columns}
          FROM {table.name}
          WHERE {_columns(table)} > {_values("after", table)}
          ORDER BY {columns}
          LIMIT {RANGE_ROWS}
        ) next_rows
        ORDER BY {", ".join(f"{column} DESC" for column in table.key)}
        LIMIT 1
    """  # noqa: S608  all names in it come from this file
    after = {f"after_{column}": _BEFORE_ALL_KEYS[column] for column in table.key}
    while row := execute_alone(connection, sql, after).mappings().one_or_none():
        yield after | {f"upto_{column}": row[column] for column in table.key}
        after = {f"after_{column}": row[column] for column in table.key}


def _columns(table: TableCheck) -> str:
    return f"({', '.join(f'{table.name}.{column}' for column in table.key)})"


def _values(bound: str, table: TableCheck) -> str:
    return f"({', '.join(f':{bound}_{column}' for column in table.key)})"
