"""The invariants of holds, of the rest after a release, and of the history. invariants.py has those of sales.

A write commits together with its events. So each statement, which sees one snapshot, sees both or none.

Holds and rests end by time alone, and nothing changes in the database when they do. Only one invariant compares with
the clock. It does so after its snapshot was taken. If a rest has not ended by then, it had not in the snapshot.

The release of a rest that ended before an archive's date may be in the file.
"""

from server.store.invariants import Invariant, TableCheck

# Times are returned as texts, because Python has no time for `infinity`.
# Beside an assignment held_by is null (phone_number_one_state). What hold_id and rest_until are there has no meaning.
KEPT_NUMBERS = TableCheck(
    "phone_number",
    ("number",),
    (
        Invariant(
            "number {number} is kept by hold {hold_id}, which organization {held_by} does not have",
            """
            SELECT number, hold_id, held_by
            FROM phone_number
            WHERE {in_range} AND held_by IS NOT NULL AND hold_id IS NOT NULL
              AND NOT EXISTS (SELECT FROM hold h WHERE (h.organization_id, h.id) = (held_by, hold_id))
            ORDER BY number
            """,
        ),
        Invariant(
            "number {number} is kept by hold {hold_id}, which {what}",
            """
            SELECT number, hold_id,
              CASE WHEN h.released_at IS NULL THEN 'does not name it' ELSE 'was released' END AS what
            FROM phone_number JOIN hold h ON (h.organization_id, h.id) = (held_by, hold_id)
            WHERE {in_range} AND (h.released_at IS NOT NULL OR number <> ALL (h.numbers))
            ORDER BY number
            """,
        ),
        Invariant(
            "number {number} is kept by hold {hold_id} until {free_at}, but the hold and the rest end at {ends_at}",
            """
            SELECT number, hold_id, free_at::text, greatest(h.expires_at, rest_until)::text AS ends_at
            FROM phone_number JOIN hold h ON (h.organization_id, h.id) = (held_by, hold_id)
            WHERE {in_range} AND free_at IS DISTINCT FROM greatest(h.expires_at, rest_until)
            ORDER BY number
            """,
        ),
        Invariant(
            "number {number} is kept for organization {held_by} until {free_at}, but by no hold and no rest",
            """
            SELECT number, held_by, free_at::text
            FROM phone_number
            WHERE {in_range} AND held_by IS NOT NULL AND hold_id IS NULL AND free_at IS DISTINCT FROM rest_until
            ORDER BY number
            """,
        ),
        Invariant(
            "number {number} rests until {rest_until}, but its last release says {available_at}",
            """
            SELECT number, rest_until::text, coalesce(last.available_at::text, 'nothing') AS available_at
            FROM phone_number LEFT JOIN LATERAL (
              SELECT (e.after ->> 'available_at')::timestamptz AS available_at
              FROM number_event e
              WHERE e.number = phone_number.number AND e.kind = 'released'
              ORDER BY e.created_at DESC
              LIMIT 1
            ) last ON true
            WHERE {in_range} AND assignment_id IS NULL AND rest_until IS NOT NULL
              AND rest_until IS DISTINCT FROM last.available_at
              AND rest_until >= (SELECT coalesce(max(archived_before), '-infinity') FROM archive)
            ORDER BY number
            """,
        ),
        Invariant(
            "number {number} rests until {rest_until} for organization {organization_id}, but is kept for {kept_for}",
            """
            SELECT number, rest_until::text, last.organization_id, coalesce(held_by::text, 'none') AS kept_for
            FROM phone_number CROSS JOIN LATERAL (
              SELECT e.organization_id
              FROM number_event e
              WHERE e.number = phone_number.number AND e.kind = 'released'
              ORDER BY e.created_at DESC
              LIMIT 1
            ) last
            WHERE {in_range} AND assignment_id IS NULL AND rest_until > clock_timestamp()
              AND held_by IS DISTINCT FROM last.organization_id
            ORDER BY number
            """,
        ),
    ),
)

# No version of the program has released an assignment without an event.
RELEASED_ASSIGNMENTS = TableCheck(
    "assignment",
    ("organization_id", "id"),
    (
        Invariant(
            "assignment {id} was released, but still has settings",
            """
            SELECT id
            FROM assignment
            WHERE {in_range} AND released_at IS NOT NULL
              AND num_nonnulls(inbound_url, status_url, label, campaign_id) > 0
            ORDER BY organization_id, id
            """,
        ),
        Invariant(
            "assignment {id} was released at {released_at}, but the history of number {number} does not say so",
            """
            SELECT id, released_at::text, number
            FROM assignment
            WHERE {in_range} AND released_at IS NOT NULL AND NOT EXISTS (
                SELECT FROM number_event e
                WHERE e.number = assignment.number AND e.kind = 'released'
                  AND (e.organization_id, e.created_at) = (assignment.organization_id, released_at)
              )
            ORDER BY organization_id, id
            """,
        ),
    ),
)

BULK_ORDERS = TableCheck(
    "orders",
    ("organization_id", "id"),
    (
        Invariant(
            "bulk order {id} was for {quantity} numbers, but has {number_count}",
            """
            SELECT id, quantity, coalesce(number_count::text, 'no count') AS number_count
            FROM orders
            WHERE {in_range} AND quantity IS NOT NULL AND number_count IS DISTINCT FROM quantity
            ORDER BY organization_id, id
            """,
        ),
    ),
)

HOLDS = TableCheck(
    "hold",
    ("organization_id", "id"),
    (
        Invariant(
            "hold {id} has number {number}, but the history of the number does not say so",
            """
            SELECT id, held.number
            FROM hold CROSS JOIN unnest(numbers) AS held (number)
            WHERE {in_range} AND NOT EXISTS (
                SELECT FROM number_event e
                WHERE (e.number, e.id, e.organization_id) = (held.number, hold.id, hold.organization_id)
                  AND e.kind = 'held'
              )
            ORDER BY organization_id, id, held.number
            """,
        ),
    ),
)

EVENTS = TableCheck(
    "number_event",
    ("number", "id"),
    (
        Invariant(
            "the history has number {number}, which is not in the inventory",
            """
            SELECT DISTINCT number
            FROM number_event
            WHERE {in_range} AND NOT EXISTS (SELECT FROM phone_number p WHERE p.number = number_event.number)
            ORDER BY number
            """,
        ),
        Invariant(
            "number {number} was released, but has no rest",
            """
            SELECT DISTINCT number
            FROM number_event JOIN phone_number p USING (number)
            WHERE {in_range} AND kind = 'released' AND p.assignment_id IS NULL AND p.rest_until IS NULL
            ORDER BY number
            """,
        ),
        Invariant(
            "number {number} was held by hold {id}, which organization {organization_id} does not have for it",
            """
            SELECT number, id, organization_id
            FROM number_event
            WHERE {in_range} AND kind = 'held' AND NOT EXISTS (
                SELECT FROM hold h
                WHERE (h.organization_id, h.id) = (number_event.organization_id, number_event.id)
                  AND number_event.number = ANY (h.numbers)
              )
            ORDER BY number, id
            """,
        ),
    ),
)

TABLES = (KEPT_NUMBERS, RELEASED_ASSIGNMENTS, BULK_ORDERS, HOLDS, EVENTS)
"""In the order in which the check reads them."""
