-- Responses that are stored under idempotency keys (orders.py, idempotency.py).

-- name: store_responses
INSERT INTO idempotency_key (organization_id, key, fingerprint, order_id, answer, created_at)
SELECT
  stored.organization_id,
  stored.key,
  stored.fingerprint,
  stored.order_id,
  stored.response,
  :'sold_at'::timestamptz
FROM json_to_recordset(:'responses'::json) AS stored (
    organization_id uuid,
    key text,
    fingerprint bytea,
    order_id uuid,
    response bytea
  );

-- name: claim_key
-- Waits for another transaction that has inserted the same key. That wait is how we know that it is in progress.
INSERT INTO idempotency_key (organization_id, key, fingerprint, order_id, answer, created_at)
VALUES (:'organization_id'::uuid, :'key', '', :'order_id'::uuid, '', clock_timestamp())
ON CONFLICT DO NOTHING;

-- name: release_key
DELETE FROM idempotency_key
WHERE organization_id = :'organization_id'::uuid
  AND key = :'key'::text;

-- name: wait_for_no_standby
-- A purged response that a failover brings back is harmless. A wait for an absent standby would keep locks.
SET synchronous_commit = local;

-- name: purge
-- A small step of STEP_ROWS: it deletes the oldest rows, and skips those that another transaction has locked.
WITH old AS (
  SELECT
    organization_id,
    key
  FROM idempotency_key
  WHERE created_at < clock_timestamp() - :'kept_ms'::bigint * interval '1 ms'
  ORDER BY created_at
  LIMIT 500
  FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_key
USING old
WHERE idempotency_key.organization_id = old.organization_id
  AND idempotency_key.key = old.key;
