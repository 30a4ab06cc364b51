-- Changes of numbers that an organization has (assignments.py).

-- name: lock_numbers_of_assignments
-- An assignment never gets another number. So this locks the right numbers before the organization is locked.
SELECT number
FROM phone_number
WHERE number IN (
    SELECT assignment.number
    FROM assignment
    WHERE assignment.organization_id = :'organization_id'::uuid
      AND assignment.id = ANY (:'ids'::uuid[])
  )
ORDER BY phone_number.number
FOR NO KEY UPDATE;

-- name: read_assignments
SELECT
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
  assignment.updated_at,
  assignment.released_at IS NULL AS is_live,
  coalesce(
    phone_number.assignment_id IS NULL
    AND phone_number.held_by = assignment.organization_id
    AND phone_number.rest_until > clock_timestamp(),
    false
  ) AS is_resting
FROM assignment
JOIN phone_number ON phone_number.number = assignment.number
WHERE assignment.organization_id = :'organization_id'::uuid
  AND assignment.id = ANY (:'ids'::uuid[]);

-- name: write_routing
WITH new_event AS (
  INSERT INTO number_event (
    number,
    id,
    kind,
    organization_id,
    api_key_id,
    request_id,
    before,
    after,
    created_at
  )
  SELECT
    assignment.number,
    :'id'::uuid,
    'routed',
    assignment.organization_id,
    :'api_key_id'::uuid,
    :'request_id',
    :'before'::jsonb,
    :'after'::jsonb,
    :'changed_at'::timestamptz
  FROM assignment
  WHERE assignment.organization_id = :'organization_id'::uuid
    AND assignment.id = :'assignment_id'::uuid
)
UPDATE assignment
SET
  inbound_url = new.inbound_url,
  status_url = new.status_url,
  label = new.label,
  campaign_id = new.campaign_id,
  updated_at = :'changed_at'::timestamptz
FROM json_to_record(:'routing'::json) AS new (inbound_url text, status_url text, label text, campaign_id uuid)
WHERE assignment.organization_id = :'organization_id'::uuid
  AND assignment.id = :'assignment_id'::uuid;

-- name: write_releases
-- The settings of a released number stay in its history only.
WITH released AS (
  SELECT released.*
  FROM json_to_recordset(:'released'::json) AS released (id uuid, number text, before jsonb)
),
ended AS (
  UPDATE assignment
  SET
    released_at = :'released_at'::timestamptz,
    inbound_url = NULL,
    status_url = NULL,
    label = NULL,
    campaign_id = NULL
  FROM released
  WHERE assignment.organization_id = :'organization_id'::uuid
    AND assignment.id = released.id
),
new_events AS (
  INSERT INTO number_event (
    number,
    id,
    kind,
    organization_id,
    api_key_id,
    request_id,
    before,
    after,
    created_at
  )
  SELECT
    released.number,
    :'id'::uuid,
    'released',
    :'organization_id'::uuid,
    nullif(:'api_key_id', '')::uuid,
    nullif(:'request_id', ''),
    released.before,
    jsonb_build_object('available_at', :'available_at'::timestamptz),
    :'released_at'::timestamptz
  FROM released
)
UPDATE phone_number
SET
  assignment_id = NULL,
  hold_id = NULL,
  held_by = :'organization_id'::uuid,
  free_at = :'available_at'::timestamptz,
  rest_until = :'available_at'::timestamptz
FROM released
WHERE phone_number.number = released.number;

-- name: find_write
-- Whether a write has committed. Each leaves an order, an event, the end of a hold, or at least a stored response.
SELECT 1
WHERE EXISTS (
    SELECT
    FROM orders
    WHERE orders.organization_id = :'organization_id'::uuid
      AND orders.id = :'id'::uuid
  )
  OR EXISTS (
    SELECT
    FROM number_event
    WHERE number_event.number = ANY (:'numbers'::text[])
      AND number_event.id = :'id'::uuid
  )
  OR EXISTS (
    SELECT
    FROM hold
    WHERE hold.organization_id = :'organization_id'::uuid
      AND hold.id = nullif(:'hold_id', '')::uuid
      AND hold.released_at = :'at'::timestamptz
  )
  OR EXISTS (
    SELECT
    FROM idempotency_key AS stored
    WHERE stored.organization_id = :'organization_id'::uuid
      AND stored.key = :'key'
      AND stored.order_id = :'id'::uuid
  );
