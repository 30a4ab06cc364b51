"""The invariants: what must hold of numbers, assignments, orders, balances and the ledger at every moment; and whether
the database keeps what it has acknowledged.

Sales going on meanwhile raise no false alarm: a finding comes from one statement, which sees one moment, or of rows
that are never deleted, read after what must come with them. Each statement looks at one range of keys only, since a
long snapshot keeps a busy organization's row from being cleaned up.
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
"""How much one statement looks at: some tens of milliseconds."""
ANSWERS_ROWS = 500
"""The same of kept answers, which name up to 100 numbers each."""


class Rule(NamedTuple):
    """Something that must never be found, told of each row that `sql` finds among the keys of one range."""

    sentence: str
    sql: str


class Walk(NamedTuple):
    """A table, the key it is walked by, and the rules that each range of it is held to."""

    table: str
    key: tuple[str, ...]
    rules: tuple[Rule, ...]


PHONE_NUMBERS = Walk(
    "phone_number",
    ("number",),
    (
        Rule(
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
        Rule(
            "number {number} is marked as assigned by {assignment_id}, which is not a live assignment of it",
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

ASSIGNMENTS = Walk(
    "assignment",
    ("organization_id", "id"),
    (
        Rule(
            "assignment {id} is live, and its number {number} is marked as {marked}",
            """
            SELECT assignment.id, number, coalesce('assigned by ' || p.assignment_id, 'not assigned') AS marked
            FROM assignment JOIN phone_number p USING (number)
            WHERE released_at IS NULL AND p.assignment_id IS DISTINCT FROM assignment.id AND {in_range}
            ORDER BY assignment.organization_id, assignment.id
            """,
        ),
        Rule(
            "assignment {id} is of number {number}, which is not in the inventory",
            """
            SELECT id, number
            FROM assignment
            WHERE {in_range} AND NOT EXISTS (SELECT FROM phone_number p WHERE p.number = assignment.number)
            ORDER BY organization_id, id
            """,
        ),
        Rule(
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
        Rule(
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

LEDGER = Walk(
    "ledger_entry",
    ("organization_id", "entry_no"),
    (
        Rule(
            "ledger of organization {organization_id}: entry {entry_no} does not follow entry {previous_no}",
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
        Rule(
            "ledger of organization {organization_id}: entry {entry_no} leaves a balance of {balance_micros} micros,"
            " and {previous_micros} {amount_micros:+} make {sum_micros}",
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
        Rule(
            "ledger of organization {organization_id}: entry {entry_no} takes {taken_micros} micros"
            " for order {order_id}, whose total is {total_micros}",
            """
            SELECT organization_id, entry_no, -amount_micros AS taken_micros, order_id, o.total_micros
            FROM ledger_entry JOIN orders o USING (organization_id)
            WHERE o.id = order_id AND o.total_micros <> -amount_micros AND {in_range}
            ORDER BY organization_id, entry_no
            """,
        ),
        Rule(
            "ledger of organization {organization_id}: entry {entry_no} is for order {order_id}, which is not there",
            """
            SELECT organization_id, entry_no, order_id
            FROM ledger_entry
            WHERE {in_range} AND order_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM orders o WHERE (o.organization_id, o.id) = (ledger_entry.organization_id, order_id)
              )
            ORDER BY organization_id, entry_no
            """,
        ),
        Rule(
            "ledger of organization {organization_id}: entry {entry_no} is of an organization that does not exist",
            """
            SELECT organization_id, entry_no
            FROM ledger_entry
            WHERE {in_range} AND NOT EXISTS (SELECT FROM organization WHERE id = organization_id)
            ORDER BY organization_id, entry_no
            """,
        ),
    ),
)

ORGANIZATIONS = Walk(
    "organization",
    ("id",),
    (
        Rule(
            "organization {id} has a balance of {balance_micros} micros after {entry_no} ledger entries,"
            " and its newest entry, {newest_no}, leaves {newest_micros}",
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

IDEMPOTENCY_KEYS = Walk(
    "idempotency_key",
    ("organization_id", "key"),
    (
        Rule(
            "an idempotency key of organization {organization_id} is for order {order_id}, which is not there",
            """
            SELECT organization_id, order_id
            FROM idempotency_key
            WHERE {in_range} AND NOT EXISTS (
                SELECT FROM orders o WHERE (o.organization_id, o.id) = (idempotency_key.organization_id, order_id)
              )
            ORDER BY organization_id, key
            """,
        ),
        Rule(
            "an idempotency key of organization {organization_id} keeps no answer for order {order_id}",
            """
            SELECT organization_id, order_id
            FROM idempotency_key
            WHERE {in_range} AND answer = ''
            ORDER BY organization_id, key
            """,
        ),
    ),
)

_NIL = UUID(int=0)
_FIRST: Mapping[str, Any] = {"number": "", "key": "", "organization_id": _NIL, "id": _NIL, "entry_no": -(2**63)}

_LOST = {
    "fsync": "a crash of the machine may lose acknowledged orders and damage the database",
    "full_page_writes": "a crash of the machine may damage the database",
    "synchronous_commit": "a crash may lose what was acknowledged by programs that do not turn it on for themselves",
}


def violations(engine: Engine) -> list[str]:
    """Every invariant that does not hold, a sentence each that names the row. Safe to run while orders are taken."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # A range is few rows of perhaps very many: an index leads from each to other tables, whatever is known of them.
        for way in ("seqscan", "bitmapscan", "material", "hashjoin", "mergejoin"):
            connection.execute(text(f"SET enable_{way} = off"))
        walks = (PHONE_NUMBERS, ASSIGNMENTS, LEDGER, ORGANIZATIONS, IDEMPOTENCY_KEYS)
        found = chain.from_iterable(_broken(connection, walk) for walk in walks)
        return [*found, *wrong_orders(connection, RANGE_ROWS), *_wrong_answers(connection)]


def durability(engine: Engine) -> list[str]:
    """Each setting of the database by which a crash may lose what was acknowledged, in a sentence."""
    query = text("SELECT name FROM pg_settings WHERE name = ANY(:names) AND reset_val = 'off' ORDER BY name")
    with engine.connect() as connection:
        off = connection.execute(query, {"names": list(_LOST)}).scalars().all()
    return [f"the database's setting {name} is off: {_LOST[name]}" for name in off]


# ---------------------------------------------------------------- rules of single ranges


def _broken(connection: Connection, walk: Walk) -> Iterator[str]:
    condition = f"{_columns(walk.table, walk.key)} > {_values('after', walk.key)}"
    condition += f" AND {_columns(walk.table, walk.key)} <= {_values('upto', walk.key)}"
    rules = [(rule.sentence, text(rule.sql.format(in_range=condition))) for rule in walk.rules]
    for bounds in _ranges(connection, walk):
        for sentence, sql in rules:
            for row in connection.execute(sql, bounds).mappings():
                yield sentence.format(**row)


def _ranges(connection: Connection, walk: Walk) -> Iterator[dict[str, Any]]:
    """Bounds of one range after another: more than `after_…`, at most `upto_…`."""
    columns = ", ".join(walk.key)
    sql = text(f"""
        SELECT {columns}
        FROM (
          SELECT {columns}
          FROM {walk.table}
          WHERE {_columns(walk.table, walk.key)} > {_values("after", walk.key)}
          ORDER BY {columns}
          LIMIT {RANGE_ROWS}
        ) ahead
        ORDER BY {", ".join(f"{column} DESC" for column in walk.key)}
        LIMIT 1
    """)  # noqa: S608  every name in it stands in this file
    after = {f"after_{column}": _FIRST[column] for column in walk.key}
    while row := connection.execute(sql, after).mappings().one_or_none():
        yield after | {f"upto_{column}": row[column] for column in walk.key}
        after = {f"after_{column}": row[column] for column in walk.key}


def _columns(table: str, key: tuple[str, ...]) -> str:
    return f"({', '.join(f'{table}.{column}' for column in key)})"


def _values(bound: str, key: tuple[str, ...]) -> str:
    return f"({', '.join(f':{bound}_{column}' for column in key)})"


# ---------------------------------------------------------------- kept answers


ANSWERS = """
    SELECT i.organization_id, i.key, i.order_id, i.answer, o.number_count
    FROM idempotency_key i JOIN orders o ON (o.organization_id, o.id) = (i.organization_id, i.order_id)
    WHERE (i.organization_id, i.key) > (:organization_id, :key) AND answer <> ''
    ORDER BY i.organization_id, i.key
    LIMIT :rows
"""
ASSIGNED = """
    SELECT a.organization_id, a.order_id, a.id, a.number
    FROM unnest(CAST(:organization_ids AS uuid[]), CAST(:ids AS uuid[])) AS told (organization_id, id)
    JOIN assignment a USING (organization_id, id)
"""


def _wrong_answers(connection: Connection) -> Iterator[str]:
    """Answers kept under idempotency keys that do not name the assignments of their order, each once."""
    after: dict[str, Any] = {"organization_id": _NIL, "key": ""}
    while page := connection.execute(text(ANSWERS), {**after, "rows": ANSWERS_ROWS}).all():
        after = {"organization_id": page[-1].organization_id, "key": page[-1].key}
        told = [_told(kept.answer) for kept in page]
        assigned = _assigned(connection, zip((kept.organization_id for kept in page), told, strict=True))
        for kept, rows in zip(page, told, strict=True):
            order = kept.organization_id, kept.order_id
            is_whole = len(rows) == len(set(rows)) == (kept.number_count or len(rows)) > 0
            if not is_whole or not assigned.issuperset((*order, *row) for row in rows):
                yield "an idempotency key of organization {} keeps an answer that is not order {}'s".format(*order)


def _told(answer: bytes) -> list[tuple[UUID, str]]:
    """The assignments that an answer names, with their numbers; none if it is no answer to an order."""
    try:
        return [(UUID(row.id), row.number) for row in OrderNumbersResponse.FromString(answer).data]
    except (DecodeError, ValueError):
        return []


def _assigned(
    connection: Connection, told: Iterable[tuple[UUID, list[tuple[UUID, str]]]]
) -> set[tuple[UUID, UUID, UUID, str]]:
    """Organization, order, id and number of those assignments that exist."""
    keys = [(organization_id, id_) for organization_id, rows in told for id_, _ in rows]
    values = {"organization_ids": [key[0] for key in keys], "ids": [key[1] for key in keys]}
    return {tuple(row) for row in connection.execute(text(ASSIGNED), values)}
