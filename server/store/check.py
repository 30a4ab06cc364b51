"""The invariants: what must hold of numbers, assignments, orders, balances and the ledger at every moment.

Each finding comes from one statement, which sees one moment, so sales going on meanwhile raise no false alarm; and each
statement looks at one range of keys only, since a long snapshot keeps a busy organization's row from being cleaned up.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, Engine, text

RANGE_ROWS = 5000
"""How much one statement looks at: some tens of milliseconds."""


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

ORDERS = Walk(
    "orders",
    ("organization_id", "id"),
    (
        # There is no index by order. An order's assignments are named just after it, so the search upward from its id
        # ends at once; only orders that it finds nothing for are looked for in all of the organization's assignments.
        Rule(
            "order {id} has no assignment",
            """
            WITH suspect AS MATERIALIZED (
              SELECT organization_id, id
              FROM orders
              LEFT JOIN LATERAL (
                SELECT true AS found
                FROM assignment a
                WHERE a.organization_id = orders.organization_id AND a.id > orders.id AND a.order_id = orders.id
                ORDER BY a.id
                LIMIT 1
              ) ahead ON true
              WHERE found IS NULL AND {in_range}
            )
            SELECT id
            FROM suspect
            WHERE NOT EXISTS (
                SELECT FROM assignment a WHERE a.organization_id = suspect.organization_id AND a.order_id = suspect.id
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


def violations(engine: Engine) -> list[str]:
    """Every invariant that does not hold, a sentence each that names the row. Safe to run while orders are taken."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # A range is few rows of perhaps very many: only an index may lead from them to other tables.
        connection.execute(text("SET enable_seqscan = off"))
        connection.execute(text("SET enable_hashjoin = off"))
        connection.execute(text("SET enable_mergejoin = off"))
        walks = (PHONE_NUMBERS, ASSIGNMENTS, ORDERS, LEDGER, ORGANIZATIONS, IDEMPOTENCY_KEYS)
        found = chain.from_iterable(_broken(connection, walk) for walk in walks)
        return [*found, *_orders_not_paid_once(connection)]


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


def _orders_not_paid_once(connection: Connection) -> Iterator[str]:
    """Orders that have not exactly one ledger entry; no index leads from an order to its entry."""
    for organization_id in connection.execute(text("SELECT id FROM organization ORDER BY id")).scalars().all():
        suspects = _unpaired(connection, organization_id)
        if not suspects:
            continue
        counted = connection.execute(text(ENTRIES_OF_ORDERS), {"organization_id": organization_id, "ids": suspects})
        yield from (f"order {row.id} has {row.entries} ledger entries" for row in counted if row.entries != 1)


def _unpaired(connection: Connection, organization_id: UUID) -> list[UUID]:
    """Orders that are not met once among the organization's orders and once in its ledger.

    Both are read at the same pace and come in nearly the same order, so few wait for their pair at a time. Sales going
    on meanwhile leave some that are in order.
    """
    orders = _pages(connection, ORDER_IDS, organization_id, _NIL)
    entries = _pages(connection, LEDGER_ORDER_IDS, organization_id, 0)
    unpaired: Counter[UUID] = Counter()
    for order_ids, paid_ids in zip_longest(orders, entries, fillvalue=()):
        unpaired.update(order_ids)
        unpaired.subtract(paid_ids)
        unpaired = Counter({order_id: count for order_id, count in unpaired.items() if count})
    return list(unpaired)


def _pages(connection: Connection, sql: str, organization_id: UUID, after: Any) -> Iterator[list[UUID]]:
    keys = {"organization_id": organization_id, "rows": RANGE_ROWS}
    while rows := connection.execute(text(sql), {**keys, "after": after}).all():
        yield [order_id for _, order_id in rows if order_id is not None]
        after = rows[-1][0]


ORDER_IDS = """
    SELECT id, id AS order_id
    FROM orders
    WHERE organization_id = :organization_id AND id > :after
    ORDER BY id
    LIMIT :rows
"""
LEDGER_ORDER_IDS = """
    SELECT entry_no, order_id
    FROM ledger_entry
    WHERE organization_id = :organization_id AND entry_no > :after
    ORDER BY entry_no
    LIMIT :rows
"""
ENTRIES_OF_ORDERS = """
    SELECT id, (
        SELECT count(*)
        FROM ledger_entry l
        WHERE l.organization_id = orders.organization_id AND l.order_id = orders.id
      ) AS entries
    FROM orders
    WHERE organization_id = :organization_id AND id = ANY(:ids)
    ORDER BY id
"""
