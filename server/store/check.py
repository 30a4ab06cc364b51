"""The check: do the invariants of numbers, assignments, orders, balances and the ledger hold? Are commits durable?

Orders may run during the check and cause no false findings. Most findings come from one statement, which sees one
snapshot. The others concern rows that are never deleted, and the rows that must exist with them are read later.

Each statement reads one range of keys only. A long snapshot would stop vacuum from cleaning up the row of a busy
organization.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

from google.protobuf.message import DecodeError
from sqlalchemy import Connection, Engine, text

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersResponse
from server.store.pairing import wrong_orders

RANGE_ROWS = 5000
"""The rows of the table that one statement reads. It takes some tens of milliseconds."""
RESPONSES_ROWS = 500
"""The stored responses that one statement reads. Each has up to 100 numbers."""


class Invariant(NamedTuple):
    """`sql` selects the rows in a range of keys that break the invariant. `finding` describes such a row."""

    finding: str
    sql: str


class TableCheck(NamedTuple):
    """A table, the key that divides it into ranges, and the invariants of its rows."""

    name: str
    key: tuple[str, ...]
    invariants: tuple[Invariant, ...]


# The constraints refuse most of the states below. They may still exist after damage, or after a restore that turned
# the constraints off.
PHONE_NUMBERS = TableCheck(
    "phone_number",
    ("number",),
    (
        Invariant(
            "number {number} has {live} live assignments",
            """
            SELECT number, count(*) AS live
            FROM phone_number JOIN assignment a USING (number)
            WHERE a.released_at IS NULL AND {in_range}
            GROUP BY number
            HAVING count(*) > 1
            ORDER BY number
            """,
        ),
        Invariant(
            "number {number} refers to assignment {assignment_id}, which is not a live assignment of it",
            """
            SELECT number, assignment_id
            FROM phone_number
            WHERE assignment_id IS NOT NULL AND {in_range}
              AND NOT EXISTS (
                SELECT FROM assignment a
                WHERE a.number = phone_number.number AND a.id = phone_number.assignment_id AND a.released_at IS NULL
              )
            ORDER BY number
            """,
        ),
    ),
)

ASSIGNMENTS = TableCheck(
    "assignment",
    ("organization_id", "id"),
    (
        Invariant(
            "assignment {id} is live, but its number {number} refers to {referred}",
            """
            SELECT assignment.id, number, coalesce('assignment ' || p.assignment_id, 'no assignment') AS referred
            FROM assignment JOIN phone_number p USING (number)
            WHERE released_at IS NULL AND p.assignment_id IS DISTINCT FROM assignment.id AND {in_range}
            ORDER BY assignment.organization_id, assignment.id
            """,
        ),
        Invariant(
            "assignment {id} has number {number}, which is not in the inventory",
            """
            SELECT id, number
            FROM assignment
            WHERE {in_range} AND NOT EXISTS (SELECT FROM phone_number p WHERE p.number = assignment.number)
            ORDER BY organization_id, id
            """,
        ),
        Invariant(
            "assignment {id} belongs to order {order_id}, which organization {organization_id} does not have",
            """
            SELECT id, order_id, organization_id
            FROM assignment
            WHERE {in_range} AND NOT EXISTS (
                SELECT FROM orders o WHERE (o.organization_id, o.id) = (assignment.organization_id, order_id)
              )
            ORDER BY organization_id, id
            """,
        ),
        Invariant(
            "assignment {id} belongs to campaign {campaign_id}, which organization {organization_id} does not have",
            """
            SELECT id, campaign_id, organization_id
            FROM assignment
            WHERE {in_range} AND campaign_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM campaign c WHERE (c.organization_id, c.id) = (assignment.organization_id, campaign_id)
              )
            ORDER BY organization_id, id
            """,
        ),
    ),
)

LEDGER = TableCheck(
    "ledger_entry",
    ("organization_id", "entry_no"),
    (
        Invariant(
            "ledger of organization {organization_id}: entry {previous_no} is missing before entry {entry_no}",
            """
            SELECT organization_id, entry_no, entry_no - 1 AS previous_no
            FROM ledger_entry
            WHERE {in_range} AND entry_no <> 1 AND NOT EXISTS (
                SELECT FROM ledger_entry previous
                WHERE previous.organization_id = ledger_entry.organization_id
                  AND previous.entry_no = ledger_entry.entry_no - 1
              )
            ORDER BY organization_id, entry_no
            """,
        ),
        Invariant(
            "ledger of organization {organization_id}: entry {entry_no} has a balance of {balance_micros} micros,"
            " but {previous_micros} {amount_micros:+} = {sum_micros}",
            """
            SELECT *, previous_micros + amount_micros AS sum_micros
            FROM (
              SELECT organization_id, entry_no, balance_micros, amount_micros, CASE entry_no WHEN 1 THEN 0 ELSE (
                  SELECT previous.balance_micros
                  FROM ledger_entry previous
                  WHERE previous.organization_id = ledger_entry.organization_id
                    AND previous.entry_no = ledger_entry.entry_no - 1
                ) END AS previous_micros
              FROM ledger_entry
              WHERE {in_range}
            ) entry
            WHERE balance_micros <> previous_micros + amount_micros
            ORDER BY organization_id, entry_no
            """,
        ),
        Invariant(
            "ledger of organization {organization_id}: entry {entry_no} charges {charged_micros} micros"
            " for order {order_id}, but the order's total is {total_micros}",
            """
            SELECT organization_id, entry_no, -amount_micros AS charged_micros, order_id, o.total_micros
            FROM ledger_entry JOIN orders o USING (organization_id)
            WHERE o.id = order_id AND o.total_micros <> -amount_micros AND {in_range}
            ORDER BY organization_id, entry_no
            """,
        ),
        Invariant(
            "ledger of organization {organization_id}: entry {entry_no} is for order {order_id}, which does not exist",
            """
            SELECT organization_id, entry_no, order_id
            FROM ledger_entry
            WHERE {in_range} AND order_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM orders o WHERE (o.organization_id, o.id) = (ledger_entry.organization_id, order_id)
              )
            ORDER BY organization_id, entry_no
            """,
        ),
        Invariant(
            "ledger of organization {organization_id}: entry {entry_no} belongs to an organization that does not exist",
            """
            SELECT organization_id, entry_no
            FROM ledger_entry
            WHERE {in_range} AND NOT EXISTS (SELECT FROM organization WHERE id = organization_id)
            ORDER BY organization_id, entry_no
            """,
        ),
    ),
)

ORGANIZATIONS = TableCheck(
    "organization",
    ("id",),
    (
        Invariant(
            "organization {id} has a balance of {balance_micros} micros after {entry_no} ledger entries,"
            " but its newest entry is {newest_no} with a balance of {newest_micros}",
            """
            SELECT id, organization.balance_micros, organization.entry_no,
              coalesce(newest.entry_no, 0) AS newest_no, coalesce(newest.balance_micros, 0) AS newest_micros
            FROM organization
            LEFT JOIN LATERAL (
              SELECT l.entry_no, l.balance_micros
              FROM ledger_entry l
              WHERE l.organization_id = organization.id
              ORDER BY l.entry_no DESC
              LIMIT 1
            ) newest ON true
            WHERE {in_range} AND (organization.balance_micros, organization.entry_no)
              <> (coalesce(newest.balance_micros, 0), coalesce(newest.entry_no, 0))
            ORDER BY id
            """,
        ),
    ),
)

IDEMPOTENCY_KEYS = TableCheck(
    "idempotency_key",
    ("organization_id", "key"),
    (
        Invariant(
            "an idempotency key of organization {organization_id} is for order {order_id}, which does not exist",
            """
            SELECT organization_id, order_id
            FROM idempotency_key
            WHERE {in_range} AND NOT EXISTS (
                SELECT FROM orders o WHERE (o.organization_id, o.id) = (idempotency_key.organization_id, order_id)
              )
            ORDER BY organization_id, key
            """,
        ),
        Invariant(
            "an idempotency key of organization {organization_id} has no stored response for order {order_id}",
            """
            SELECT organization_id, order_id
            FROM idempotency_key
            WHERE {in_range} AND answer = ''
            ORDER BY organization_id, key
            """,
        ),
    ),
)

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
        tables = (PHONE_NUMBERS, ASSIGNMENTS, LEDGER, ORGANIZATIONS, IDEMPOTENCY_KEYS)
        found = chain.from_iterable(_violations_in(connection, table) for table in tables)
        return [*found, *wrong_orders(connection, RANGE_ROWS), *_wrong_responses(connection)]


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
    statements = [(invariant.finding, text(invariant.sql.format(in_range=in_range))) for invariant in table.invariants]
    for bounds in _ranges(connection, table):
        for finding, sql in statements:
            for row in connection.execute(sql, bounds).mappings():
                yield finding.format(**row)


def _ranges(connection: Connection, table: TableCheck) -> Iterator[dict[str, Any]]:
    """Return the bounds of each range of keys: greater than `after_…` and at most `upto_…`."""
    columns = ", ".join(table.key)
    # Reads the last key of the next RANGE_ROWS rows.
    sql = text(f"""
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
    """)  # noqa: S608  all names in it come from this file
    after = {f"after_{column}": _BEFORE_ALL_KEYS[column] for column in table.key}
    while row := connection.execute(sql, after).mappings().one_or_none():
        yield after | {f"upto_{column}": row[column] for column in table.key}
        after = {f"after_{column}": row[column] for column in table.key}


def _columns(table: TableCheck) -> str:
    return f"({', '.join(f'{table.name}.{column}' for column in table.key)})"


def _values(bound: str, table: TableCheck) -> str:
    return f"({', '.join(f':{bound}_{column}' for column in table.key)})"


# ---------------------------------------------------------------- stored responses


RESPONSES = """
    SELECT i.organization_id, i.key, i.order_id, i.answer, o.number_count
    FROM idempotency_key i JOIN orders o ON (o.organization_id, o.id) = (i.organization_id, i.order_id)
    WHERE (i.organization_id, i.key) > (:organization_id, :key) AND answer <> ''
    ORDER BY i.organization_id, i.key
    LIMIT :rows
"""
ASSIGNMENTS_BY_ID = """
    SELECT a.organization_id, a.order_id, a.id, a.number
    FROM unnest(CAST(:organization_ids AS uuid[]), CAST(:ids AS uuid[])) AS named (organization_id, id)
    JOIN assignment a USING (organization_id, id)
"""


def _wrong_responses(connection: Connection) -> Iterator[str]:
    """Return a sentence for each stored response that does not have exactly the assignments of its order."""
    after: dict[str, Any] = {"organization_id": _NIL_UUID, "key": ""}
    while page := connection.execute(text(RESPONSES), {**after, "rows": RESPONSES_ROWS}).all():
        after = {"organization_id": page[-1].organization_id, "key": page[-1].key}
        named = [_assignments_in(stored.answer) for stored in page]
        existing = _existing(connection, zip((stored.organization_id for stored in page), named, strict=True))
        for stored, rows in zip(page, named, strict=True):
            order = stored.organization_id, stored.order_id
            # number_count is null in orders of a server that did not know the column.
            is_whole = len(rows) == len(set(rows)) == (stored.number_count or len(rows)) > 0
            if not is_whole or not existing.issuperset((*order, *row) for row in rows):
                yield "an idempotency key of organization {} has a stored response that does not match order {}".format(
                    *order
                )


def _assignments_in(response: bytes) -> list[tuple[UUID, str]]:
    """Return the assignments in the response with their numbers. Empty if it is not a response to an order."""
    try:
        return [(UUID(row.id), row.number) for row in OrderNumbersResponse.FromString(response).data]
    except (DecodeError, ValueError):
        return []


def _existing(
    connection: Connection, named: Iterable[tuple[UUID, list[tuple[UUID, str]]]]
) -> set[tuple[UUID, UUID, UUID, str]]:
    """Return organization, order, id and number of those assignments that exist."""
    keys = [(organization_id, id_) for organization_id, rows in named for id_, _ in rows]
    values = {"organization_ids": [key[0] for key in keys], "ids": [key[1] for key in keys]}
    return {tuple(row) for row in connection.execute(text(ASSIGNMENTS_BY_ID), values)}
