"""Many old orders, as the service would have written them. The organizations must have credit and nothing else yet."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from sqlalchemy import Engine, text

LIVE_EVERY = 5
"""One of so many orders still has its number. The numbers of the others were given back, and ordered again."""
NUMBERS_EACH = 20
"""One number was ordered about so often."""

# What each order consists of, by its number `i`.
OLD = """
    SELECT i, owner.organization_id, owner.id AS api_key_id, created_at, is_live, i / keys.count + 1 AS order_no,
      CASE WHEN NOT is_live THEN created_at + pool * step / 2 END AS released_at,
      (overlay(uuid PLACING lpad(to_hex(2 * i), 12, '0') FROM 25))::uuid AS id,
      (overlay(uuid PLACING lpad(to_hex(2 * i + 1), 12, '0') FROM 25))::uuid AS assignment_id,
      '+17' || lpad(CASE WHEN is_live THEN pool + i ELSE i % pool END::text, 9, '0') AS number,
      is_live OR i >= :orders - 2 * pool AS may_be_last_of_number
    FROM (SELECT count(*) FROM api_key) keys
    CROSS JOIN generate_series(0, CAST(:orders AS bigint) - 1) AS i
    JOIN (
      SELECT id, organization_id, row_number() OVER (ORDER BY organization_id) - 1 AS k FROM api_key
    ) owner ON k = i % keys.count
    CROSS JOIN LATERAL (
      SELECT greatest(1, :orders / :numbers_each) AS pool, i % :live_every = 0 AS is_live,
        (CAST(:until AS timestamptz) - CAST(:since AS timestamptz)) / :orders AS step
    ) made
    CROSS JOIN LATERAL (SELECT :since + i * step AS created_at) at
    CROSS JOIN LATERAL (SELECT lpad(to_hex((extract(epoch FROM created_at) * 1000)::bigint), 12, '0') AS ms) in_hex
    CROSS JOIN LATERAL (SELECT left(ms, 8) || '-' || right(ms, 4) || '-7000-8000-000000000000' AS uuid) made_of_it
"""
FILL = (
    f"""
    INSERT INTO orders (organization_id, id, api_key_id, request_id, total_micros, number_count, created_at)
    SELECT organization_id, id, api_key_id, '01J' || lpad(i::text, 23, '0'), 1000000, 1, created_at
    FROM ({OLD}) old
    """,
    f"""
    INSERT INTO assignment (
      organization_id, id, order_id, number, price_micros, created_at, updated_at, released_at
    )
    SELECT organization_id, assignment_id, id, number, 1000000, created_at, created_at, released_at
    FROM ({OLD}) old
    """,
    f"""
    INSERT INTO ledger_entry (
      organization_id, entry_no, kind, amount_micros, balance_micros, order_id, created_at
    )
    SELECT organization_id, 1 + order_no, 'order', -1000000, balance_micros - 1000000 * order_no, old.id, old.created_at
    FROM ({OLD}) old JOIN organization ON organization.id = organization_id
    """,
    f"""
    INSERT INTO number_event (
      number, id, kind, organization_id, api_key_id, request_id, before, after, created_at
    )
    SELECT number, id, 'released', organization_id, api_key_id, '01J' || lpad(i::text, 23, '0'),
      '{{"label": null, "status_url": null, "campaign_id": null, "inbound_url": null}}',
      jsonb_build_object('available_at', released_at + interval '1 s'), released_at
    FROM ({OLD}) old
    WHERE NOT is_live
    """,
    f"""
    INSERT INTO phone_number (
      number, number_type, sms_enabled, mms_enabled, price_micros, assignment_id, held_by, free_at, rest_until
    )
    SELECT DISTINCT ON (number) number, 'local', true, true, 1000000,
      CASE WHEN is_live THEN assignment_id END, CASE WHEN NOT is_live THEN organization_id END,
      released_at + interval '1 s', released_at + interval '1 s'
    FROM ({OLD}) old
    WHERE may_be_last_of_number
    ORDER BY number, i DESC
    """,
)
CHARGE = (
    "UPDATE ledger_entry SET created_at = :since WHERE entry_no = 1",
    f"""
    UPDATE organization SET balance_micros = balance_micros - 1000000 * sold, entry_no = entry_no + sold
    FROM (SELECT organization_id, count(*) AS sold FROM ({OLD}) old GROUP BY organization_id) spent
    WHERE organization_id = organization.id
    """,
)
# Checks of foreign keys and triggers would take most of the time.
WITHOUT_TRIGGERS = "SET LOCAL session_replication_role = replica"


def add_old_orders(engine: Engine, orders: int, since: datetime, until: datetime) -> None:
    """Add orders of one number for one credit, evenly in that time and over all API keys."""
    values = {
        "orders": orders,
        "since": since,
        "until": until,
        "live_every": LIVE_EVERY,
        "numbers_each": NUMBERS_EACH,
    }

    def run(*statements: str) -> None:
        with engine.begin() as connection:
            for statement in (WITHOUT_TRIGGERS, *statements):
                connection.execute(text(statement), values)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, FILL))
    run(*CHARGE)
