"""The invariants of sales, table by table, for the check. life_invariants.py has those of holds and releases."""

from typing import NamedTuple


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
              ) AND NOT EXISTS (
                SELECT FROM archive
                WHERE archive.organization_id = ledger_entry.organization_id
                  AND archive.entry_no >= ledger_entry.entry_no - 1
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
                  UNION ALL
                  SELECT archive.balance_micros
                  FROM archive
                  WHERE archive.organization_id = ledger_entry.organization_id
                    AND archive.entry_no = ledger_entry.entry_no - 1
                  LIMIT 1
                ) END AS previous_micros
              FROM ledger_entry
              WHERE {in_range}
            ) entry
            WHERE balance_micros <> previous_micros + amount_micros
            ORDER BY organization_id, entry_no
            """,
        ),
        # The planner takes a range of ledger entries for a large part of the table. So a join with `archive` would read
        # all rows of it, and search the ledger for each. The scalar subqueries of these two read one row per entry.
        Invariant(
            "ledger of organization {organization_id}: entry {entry_no} exists,"
            " although the entries up to {archived_no} are archived",
            """
            SELECT organization_id, entry_no, archived_no
            FROM (
              SELECT *, (
                  SELECT archive.entry_no FROM archive WHERE archive.organization_id = ledger_entry.organization_id
                ) AS archived_no
              FROM ledger_entry
              WHERE {in_range}
            ) entry
            WHERE entry_no <= archived_no
            ORDER BY organization_id, entry_no
            """,
        ),
        # An order is as old as its ledger entry.
        Invariant(
            "ledger of organization {organization_id}: entry {entry_no} charges for order {order_id},"
            " whose entry is archived",
            """
            SELECT organization_id, entry_no, order_id
            FROM (
              SELECT *, (
                  SELECT entries_until FROM archive WHERE archive.organization_id = ledger_entry.organization_id
                ) AS archived_until
              FROM ledger_entry
              WHERE {in_range}
            ) entry
            WHERE created_at > archived_until AND archived_until >= (
                SELECT o.created_at FROM orders o WHERE (o.organization_id, o.id) = (entry.organization_id, order_id)
              )
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
            WHERE {in_range} AND coalesce(method, 'BulkOrderNumbers') = 'BulkOrderNumbers' AND NOT EXISTS (
                SELECT FROM orders o WHERE (o.organization_id, o.id) = (idempotency_key.organization_id, order_id)
              )
            ORDER BY organization_id, key
            """,
        ),
        Invariant(
            "an idempotency key of organization {organization_id} has no stored response for {written} {order_id}",
            """
            SELECT organization_id, order_id,
              CASE WHEN method IS NULL THEN 'order' ELSE 'the write' END AS written
            FROM idempotency_key
            WHERE {in_range} AND answer = ''
            ORDER BY organization_id, key
            """,
        ),
    ),
)

TABLES = (PHONE_NUMBERS, ASSIGNMENTS, LEDGER, ORGANIZATIONS, IDEMPOTENCY_KEYS)
"""In the order in which the check reads them."""
