-- Holds (holds.py). A hold keeps a number as long as the number's row refers to it and the hold has not ended.

-- name: count_held
-- How many numbers the organization holds, besides these.
SELECT count(*)
FROM hold
CROSS JOIN unnest(hold.numbers) AS held (number)
JOIN phone_number ON phone_number.number = held.number
WHERE hold.organization_id = :'organization_id'::uuid
  AND hold.expires_at > clock_timestamp()
  AND hold.released_at IS NULL
  AND phone_number.hold_id = hold.id
  AND phone_number.held_by = hold.organization_id
  AND phone_number.assignment_id IS NULL
  AND phone_number.number <> ALL (:'numbers'::text[]);

-- name: write_hold
-- The rest after a release goes on when a hold ends before it.
WITH new_hold AS (
  INSERT INTO hold (organization_id, id, api_key_id, request_id, numbers, created_at, expires_at)
  VALUES (
    :'organization_id'::uuid,
    :'id'::uuid,
    :'api_key_id'::uuid,
    :'request_id',
    :'numbers'::text[],
    :'created_at'::timestamptz,
    :'expires_at'::timestamptz
  )
),
new_events AS (
  INSERT INTO number_event (number, id, kind, organization_id, api_key_id, request_id, after, created_at)
  SELECT
    held.number,
    :'id'::uuid,
    'held',
    :'organization_id'::uuid,
    :'api_key_id'::uuid,
    :'request_id',
    jsonb_build_object('expires_at', :'expires_at'::timestamptz),
    :'created_at'::timestamptz
  FROM unnest(:'numbers'::text[]) AS held (number)
)
UPDATE phone_number
SET
  held_by = :'organization_id'::uuid,
  hold_id = :'id'::uuid,
  free_at = greatest(rest_until, :'expires_at'::timestamptz)
WHERE number = ANY (:'numbers'::text[]);

-- name: lock_numbers_of_hold
SELECT number
FROM phone_number
WHERE number IN (
    SELECT unnest(hold.numbers)
    FROM hold
    WHERE hold.organization_id = :'organization_id'::uuid
      AND hold.id = :'hold_id'::uuid
  )
ORDER BY phone_number.number
FOR NO KEY UPDATE;

-- name: read_hold
-- Only numbers that were not ordered, or held anew, since.
SELECT
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
FROM hold
WHERE hold.organization_id = :'organization_id'::uuid
  AND hold.id = :'hold_id'::uuid
  AND hold.released_at IS NULL
  AND hold.expires_at > clock_timestamp();

-- name: end_hold
WITH ended AS (
  UPDATE hold
  SET released_at = :'ended_at'::timestamptz
  WHERE organization_id = :'organization_id'::uuid
    AND id = :'hold_id'::uuid
),
new_events AS (
  INSERT INTO number_event (number, id, kind, organization_id, api_key_id, request_id, created_at)
  SELECT
    freed.number,
    :'id'::uuid,
    'hold_released',
    :'organization_id'::uuid,
    :'api_key_id'::uuid,
    :'request_id',
    :'ended_at'::timestamptz
  FROM unnest(:'numbers'::text[]) AS freed (number)
)
UPDATE phone_number
SET
  hold_id = NULL,
  held_by = CASE WHEN rest_until > :'ended_at'::timestamptz THEN held_by END,
  free_at = CASE WHEN rest_until > :'ended_at'::timestamptz THEN rest_until END
WHERE number = ANY (:'numbers'::text[]);
