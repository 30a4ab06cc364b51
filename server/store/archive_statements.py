"""The statements of an archive: which rows may go, and how they are deleted. archive.py says why others stay."""

Delete = tuple[str, str]
"""A table, and a statement that deletes rows of it and returns them as JSON."""

# A stored response is not older than its order.
OLD = """
    SELECT clock_timestamp() AS now, least(CAST(:before AS timestamptz), min(created_at)) AS orders_before
    FROM idempotency_key
"""

FIRST_ORDER = "SELECT created_at FROM orders WHERE organization_id = :organization_id ORDER BY id LIMIT 1"

ARCHIVED_ENTRIES = """
    SELECT entry_no AS size, entry_no, balance_micros, entries_until
    FROM archive
    WHERE organization_id = :organization_id
"""

MARK = """
    INSERT INTO archive (organization_id, archived_before, entry_no, balance_micros, entries_until)
    VALUES (:organization_id, :before, :entry_no, :balance_micros, :until)
    ON CONFLICT (organization_id) DO UPDATE SET
      archived_before = greatest(archive.archived_before, excluded.archived_before),
      entry_no = greatest(archive.entry_no, excluded.entry_no),
      balance_micros
        = CASE WHEN excluded.entry_no > archive.entry_no THEN excluded.balance_micros ELSE archive.balance_micros END,
      entries_until = greatest(archive.entries_until, excluded.entries_until)
"""

ENTRIES = """
    SELECT count(*), coalesce(max(entry_no), 0), coalesce((array_agg(balance_micros ORDER BY entry_no DESC))[1], 0),
      greatest(max(created_at), CAST(:until AS timestamptz))
    FROM (
      SELECT *, bool_and(follows AND created_at < :before) OVER (ORDER BY entry_no) AS may_go
      FROM (
        SELECT entry_no, balance_micros, created_at,
          entry_no = lag(entry_no, 1, CAST(:entry_no AS bigint)) OVER (ORDER BY entry_no) + 1
          AND balance_micros
            = lag(balance_micros, 1, CAST(:balance_micros AS bigint)) OVER (ORDER BY entry_no) + amount_micros
          AS follows
        FROM (
          SELECT *
          FROM ledger_entry
          WHERE organization_id = :organization_id AND entry_no > :entry_no
          ORDER BY entry_no
          LIMIT :rows
        ) page
      ) entry
    ) entry
    WHERE may_go AND entry_no < (SELECT max(entry_no) FROM ledger_entry WHERE organization_id = :organization_id)
"""
DELETE_ENTRIES: tuple[Delete, ...] = (
    (
        "ledger_entry",
        """
        DELETE FROM ledger_entry
        WHERE organization_id = :organization_id AND entry_no > :after AND entry_no <= :upto
        RETURNING to_jsonb(ledger_entry)::text
        """,
    ),
)

HOLD_MAY_GO = """
    h.expires_at < :before AND NOT EXISTS (
      SELECT FROM phone_number p
      WHERE p.number = ANY (h.numbers) AND (p.held_by, p.hold_id) = (h.organization_id, h.id)
    )
"""
HOLDS = f"""
    SELECT h.id, h.expires_at::text, {HOLD_MAY_GO} AS may_go
    FROM (
      SELECT *, sum(cardinality(numbers)) OVER (ORDER BY expires_at, id) - cardinality(numbers) AS numbers_before
      FROM (
        SELECT *
        FROM hold
        WHERE organization_id = :organization_id AND expires_at < :before
          AND (expires_at, id) > (CAST(:expires_at AS timestamptz), :id)
        ORDER BY expires_at, id
        LIMIT :rows
      ) page
    ) h
    WHERE numbers_before < :rows
    ORDER BY h.expires_at, h.id
"""  # noqa: S608  all of it comes from this file
DELETE_HOLDS: tuple[Delete, ...] = (
    (
        "number_event",
        """
        DELETE FROM number_event e
        USING hold h
        WHERE h.organization_id = :organization_id AND h.id = ANY (CAST(:ids AS uuid[]))
          AND e.number = ANY (h.numbers) AND e.organization_id = h.organization_id
          AND (e.kind = 'held' AND e.id = h.id OR e.kind = 'hold_released' AND e.created_at = h.released_at)
        RETURNING to_jsonb(e)::text
        """,
    ),
    (
        "hold",
        """
        DELETE FROM hold
        WHERE organization_id = :organization_id AND id = ANY (CAST(:ids AS uuid[]))
        RETURNING to_jsonb(hold)::text
        """,
    ),
)

# `entry_no` and `until` are of the last ledger entry that is archived before. An order is as old as its entry.
ORDER_MAY_GO = """
    o.created_at < :orders_before AND o.created_at <= CAST(:until AS timestamptz)
    AND NOT EXISTS (
      SELECT FROM ledger_entry l
      WHERE l.organization_id = o.organization_id AND l.order_id = o.id AND l.entry_no > :entry_no
    )
    AND NOT EXISTS (
      SELECT FROM assignment a
      WHERE a.organization_id = o.organization_id AND a.order_id = o.id
        AND NOT EXISTS (
          SELECT FROM number_event e
          WHERE e.number = a.number AND e.kind = 'released'
            AND (e.organization_id, e.created_at) = (a.organization_id, a.released_at)
            AND CAST(e.after ->> 'available_at' AS timestamptz) < :before
        )
    )
"""
ORDERS = f"""
    SELECT o.id, o.created_at < :orders_before AS is_old, {ORDER_MAY_GO} AS may_go
    FROM (
      SELECT *, sum(coalesce(number_count, 100)) OVER (ORDER BY id) - coalesce(number_count, 100) AS numbers_before
      FROM (
        SELECT * FROM orders WHERE organization_id = :organization_id AND id > :after ORDER BY id LIMIT :rows
      ) page
    ) o
    WHERE numbers_before < :rows
    ORDER BY o.id
"""  # noqa: S608
DELETE_ORDERS: tuple[Delete, ...] = (
    (
        "number_event",
        """
        DELETE FROM number_event e
        USING assignment a
        WHERE a.organization_id = :organization_id AND a.order_id = ANY (CAST(:ids AS uuid[]))
          AND e.number = a.number AND e.organization_id = a.organization_id
          AND (
            e.kind = 'routed' AND e.created_at > a.created_at AND e.created_at <= a.released_at
            OR e.kind = 'released' AND e.created_at = a.released_at
          )
        RETURNING to_jsonb(e)::text
        """,
    ),
    (
        "assignment",
        """
        DELETE FROM assignment
        WHERE organization_id = :organization_id AND order_id = ANY (CAST(:ids AS uuid[]))
        RETURNING to_jsonb(assignment)::text
        """,
    ),
    (
        "orders",
        """
        DELETE FROM orders
        WHERE organization_id = :organization_id AND id = ANY (CAST(:ids AS uuid[]))
        RETURNING to_jsonb(orders)::text
        """,
    ),
)

OLD_ORDERS = f"SELECT o.id FROM orders o WHERE o.organization_id = :organization_id AND {ORDER_MAY_GO}"  # noqa: S608
COUNTS = (
    ("hold", f"SELECT count(*) FROM hold h WHERE organization_id = :organization_id AND {HOLD_MAY_GO}"),  # noqa: S608
    ("orders", f"SELECT count(*) FROM ({OLD_ORDERS}) old"),  # noqa: S608
    (
        "assignment",
        f"SELECT count(*) FROM assignment WHERE organization_id = :organization_id AND order_id IN ({OLD_ORDERS})",  # noqa: S608
    ),
)
