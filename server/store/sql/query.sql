-- What an organization reads (queries.py). Each read looks at its key in the same statement: without a row the key is
-- not valid, and a row of nulls means that nothing was found.

-- name: list_numbers
-- Newest first: the ids are UUIDv7. A page begins below the last id of the page before, so it repeats and skips none.
-- The planner assumes that a half of the rows pass a CASE. With plain conditions it would assume one row. Then it would
-- read and sort all numbers of the organization for a page.
WITH caller AS (
  SELECT scopes
  FROM api_key
  WHERE id = :'api_key_id'::uuid
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
)
SELECT
  caller.scopes,
  page.id::text,
  page.number,
  page.number_type,
  page.sms_enabled,
  page.mms_enabled,
  page.inbound_url,
  page.status_url,
  page.label,
  page.campaign_id::text,
  page.created_at,
  page.updated_at
FROM caller
LEFT JOIN LATERAL (
  SELECT
    assignment.*,
    phone_number.number_type,
    phone_number.sms_enabled,
    phone_number.mms_enabled
  FROM assignment
  JOIN phone_number ON phone_number.number = assignment.number
  WHERE assignment.organization_id = :'organization_id'::uuid
    AND assignment.id < :'before'::uuid
    AND CASE
      WHEN assignment.released_at IS NOT NULL THEN false
      WHEN :'campaign_id' <> '' AND assignment.campaign_id IS DISTINCT FROM nullif(:'campaign_id', '')::uuid THEN false
      ELSE :'search' = ''
        OR strpos(assignment.number, :'search') > 0
        OR strpos(lower(assignment.label), lower(:'search')) > 0
    END
    AND CASE :'number_type' WHEN '' THEN true ELSE phone_number.number_type = :'number_type' END
  ORDER BY assignment.id DESC
  LIMIT :'rows'::integer
) AS page ON true
ORDER BY page.id DESC;

-- name: get_number
WITH caller AS (
  SELECT scopes
  FROM api_key
  WHERE id = :'api_key_id'::uuid
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
)
SELECT
  caller.scopes,
  assignment.id::text,
  assignment.number,
  phone_number.number_type,
  phone_number.sms_enabled,
  phone_number.mms_enabled,
  assignment.inbound_url,
  assignment.status_url,
  assignment.label,
  assignment.campaign_id::text,
  assignment.created_at,
  assignment.updated_at
FROM caller
LEFT JOIN (
  assignment JOIN phone_number ON phone_number.number = assignment.number
) ON assignment.organization_id = :'organization_id'::uuid
  AND assignment.id = :'id'::uuid
  AND assignment.released_at IS NULL;

-- name: get_order
-- By its id, or by the idempotency key under which it was carried out. An order has no index of its assignments. Their
-- ids were made right after the order's id, so they are the next ones after it.
-- Each row is as it was then. The first change of a value after the order has the value from before.
WITH caller AS (
  SELECT scopes
  FROM api_key
  WHERE id = :'api_key_id'::uuid
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
),
wanted AS (
  SELECT coalesce(
      nullif(:'id', '')::uuid,
      (
        SELECT stored.order_id
        FROM idempotency_key AS stored
        WHERE stored.organization_id = :'organization_id'::uuid
          AND stored.key = :'key'
      )
    ) AS id
)
SELECT
  caller.scopes,
  found.order_id::text,
  found.quantity,
  found.id::text,
  found.number,
  CASE WHEN found.was ? 'number_type' THEN found.was ->> 'number_type' ELSE found.number_type END AS number_type,
  CASE WHEN found.was ? 'sms_enabled' THEN (found.was ->> 'sms_enabled')::boolean ELSE found.sms_enabled END
    AS sms_enabled,
  CASE WHEN found.was ? 'mms_enabled' THEN (found.was ->> 'mms_enabled')::boolean ELSE found.mms_enabled END
    AS mms_enabled,
  CASE WHEN found.was ? 'inbound_url' THEN found.was ->> 'inbound_url' ELSE found.inbound_url END AS inbound_url,
  CASE WHEN found.was ? 'status_url' THEN found.was ->> 'status_url' ELSE found.status_url END AS status_url,
  CASE WHEN found.was ? 'label' THEN found.was ->> 'label' ELSE found.label END AS label,
  CASE WHEN found.was ? 'campaign_id' THEN found.was ->> 'campaign_id' ELSE found.campaign_id::text END AS campaign_id,
  found.created_at,
  found.created_at AS updated_at
FROM caller
LEFT JOIN LATERAL (
  SELECT
    item.*,
    orders.quantity,
    phone_number.number_type,
    phone_number.sms_enabled,
    phone_number.mms_enabled,
    coalesce(earlier.was, '{}') AS was
  FROM wanted
  JOIN orders ON orders.organization_id = :'organization_id'::uuid
    AND orders.id = wanted.id
  CROSS JOIN LATERAL (
    SELECT assignment.*
    FROM assignment
    WHERE assignment.organization_id = orders.organization_id
      AND assignment.id > orders.id
      AND assignment.order_id = orders.id
    ORDER BY assignment.id
    LIMIT coalesce(orders.number_count, 100)
  ) AS item
  JOIN phone_number ON phone_number.number = item.number
  LEFT JOIN LATERAL (
    SELECT jsonb_object_agg(first.key, first.value) AS was
    FROM (
      SELECT DISTINCT ON (changed.key)
        changed.key,
        changed.value
      FROM number_event
      CROSS JOIN jsonb_each(number_event.before) AS changed (key, value)
      WHERE number_event.number = item.number
        AND number_event.created_at > item.created_at
      ORDER BY changed.key, number_event.created_at, number_event.id
    ) AS first
  ) AS earlier ON true
) AS found ON true
ORDER BY found.id;

-- name: get_hold
WITH caller AS (
  SELECT scopes
  FROM api_key
  WHERE id = :'api_key_id'::uuid
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
)
SELECT
  caller.scopes,
  hold.id::text,
  ARRAY(
    SELECT held.number
    FROM unnest(hold.numbers) WITH ORDINALITY AS held (number, position)
    JOIN phone_number ON phone_number.number = held.number
    WHERE phone_number.hold_id = hold.id
      AND phone_number.held_by = hold.organization_id
      AND phone_number.assignment_id IS NULL
    ORDER BY held.position
  ) AS numbers,
  hold.created_at,
  hold.expires_at
FROM caller
LEFT JOIN hold ON hold.organization_id = :'organization_id'::uuid
  AND hold.id = :'id'::uuid
  AND hold.released_at IS NULL
  AND hold.expires_at > clock_timestamp();

-- name: read_numbers
-- For an order that is only checked: what the order locks, without the locks.
SELECT
  number,
  number_type,
  sms_enabled,
  mms_enabled,
  price_micros,
  assignment_id::text,
  held_by::text,
  free_at
FROM phone_number
WHERE number = ANY (:'numbers'::text[]);

-- name: read_account
SELECT
  id::text,
  balance_micros,
  entry_no
FROM organization
WHERE id = :'organization_id'::uuid;
