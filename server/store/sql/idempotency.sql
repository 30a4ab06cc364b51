-- Responses that are stored under idempotency keys (orders.py, writes.py, idempotency.py).

-- name: store_responses
INSERT INTO idempotency_key (organization_id, key, fingerprint, order_id, answer, method, created_at)
SELECT
  stored.organization_id,
  stored.key,
  stored.fingerprint,
  stored.order_id,
  stored.response,
  stored.method,
  :'stored_at'::timestamptz
FROM json_to_recordset(:'responses'::json) AS stored (
    organization_id uuid,
    key text,
    fingerprint bytea,
    order_id uuid,
    response bytea,
    method text
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
DELETE FROM idempotency_key
WHERE ctid = ANY (ARRAY(
    SELECT old.ctid
    FROM idempotency_key AS old
    WHERE old.created_at < clock_timestamp() - :'kept_ms'::bigint * interval '1 ms'
    ORDER BY old.created_at
    LIMIT 500
    FOR UPDATE SKIP LOCKED
  ));
