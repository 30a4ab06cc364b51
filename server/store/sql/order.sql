-- The order transaction (orders.py). Round trip 1 locks and reads. Round trip 2 writes what was decided.
-- Locks are taken in one order everywhere: idempotency keys, numbers, organizations. Each of these in its sort order.

-- name: limit_transaction
-- For this transaction only.
-- The database may have synchronous_commit off at any moment. A crash would then lose an acknowledged order.
SELECT
  set_config('lock_timeout', :'lock_timeout', true),
  set_config('statement_timeout', :'statement_timeout', true),
  set_config('synchronous_commit', CASE durable WHEN 'off' THEN 'on' ELSE durable END, true)
FROM current_setting('synchronous_commit') AS durable;

-- name: lock_numbers
-- Availability is in the row that is locked. A joined table would be read as it was before the wait for the lock.
-- Followed by SKIP LOCKED where locked rows are skipped. The same holds for the next two statements.
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
WHERE number = ANY (:'numbers'::text[])
ORDER BY phone_number.number
FOR NO KEY UPDATE;

-- name: lock_numbers_without_response
-- As above, without the numbers of orders whose idempotency key has a stored response: these take no locks.
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
WHERE number IN (
    SELECT wanted.number
    FROM json_to_recordset(:'wanted'::json) AS wanted (number text, organization_id uuid, key text)
    WHERE wanted.key IS NULL
      OR NOT EXISTS (
        SELECT
        FROM idempotency_key AS known
        WHERE known.organization_id = wanted.organization_id
          AND known.key = wanted.key
        -- Looked up one by one. Without this the planner may read all keys for a join.
        OFFSET 0
      )
  )
ORDER BY phone_number.number
FOR NO KEY UPDATE;

-- name: lock_chosen
-- For a bulk order: as many as it wants of those that its search has found. It does not wait for any of them.
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
WHERE number = ANY (:'numbers'::text[])
  AND assignment_id IS NULL
  AND (free_at IS NULL OR free_at <= clock_timestamp())
ORDER BY phone_number.number
LIMIT :'rows'::integer
FOR NO KEY UPDATE SKIP LOCKED;

-- name: lock_organizations
-- Every change of a key, brand or campaign updates its organization's row first. So what is read below stays true.
-- A plain `ORDER BY id` would mean the text in the result, whose order depends on the locale of the database.
SELECT
  id::text,
  balance_micros,
  entry_no
FROM organization
WHERE id = ANY (:'organization_ids'::uuid[])
ORDER BY organization.id
FOR NO KEY UPDATE;

-- name: read_existing_numbers
-- A number that exists here, and was not locked above, is locked by another transaction.
SELECT number
FROM phone_number
WHERE number = ANY (:'numbers'::text[]);

-- name: read_keys
-- clock_timestamp(), because now() is when the transaction began. That was before it had its locks.
SELECT
  clock_timestamp() AS now,
  id::text,
  scopes,
  expires_at,
  revoked_at
FROM api_key
WHERE id = ANY (:'api_key_ids'::uuid[]);

-- name: read_campaigns
SELECT
  campaign.organization_id::text,
  campaign.id::text,
  campaign.status,
  brand.identity_status
FROM campaign
LEFT JOIN brand ON brand.id = campaign.brand_id
WHERE campaign.id = ANY (:'campaign_ids'::uuid[]);

-- name: read_stored_responses
-- Only after the organizations are locked: an order with the same key has committed by then, or has not begun.
SELECT
  stored.organization_id::text,
  stored.key,
  stored.fingerprint,
  stored.answer AS response
FROM json_to_recordset(:'keys'::json) AS asked (organization_id uuid, key text)
JOIN idempotency_key AS stored
  ON stored.organization_id = asked.organization_id
  AND stored.key = asked.key;

-- name: find_order
SELECT 1
FROM orders
WHERE organization_id = :'organization_id'::uuid
  AND id = :'id'::uuid;

-- name: write
-- Each table is touched once. Every sale stays a HOT update of phone_number, because no index names what it changes.
WITH placed AS (
  SELECT
    placed.*,
    :'sold_at'::timestamptz AS sold_at
  FROM json_to_recordset(:'placed'::json) AS placed (
    organization_id uuid,
    id uuid,
    api_key_id uuid,
    request_id text,
    total_micros bigint,
    entry_no bigint,
    balance_micros bigint,
    numbers text[],
    assignment_ids uuid[],
    prices_micros bigint[],
    quantity bigint,
    inbound_url text,
    status_url text,
    label text,
    campaign_id uuid
  )
),
taken AS (
  SELECT
    placed.organization_id,
    placed.id AS order_id,
    item.id,
    item.number,
    item.price_micros,
    placed.inbound_url,
    placed.status_url,
    placed.label,
    placed.campaign_id,
    placed.sold_at
  FROM placed
  CROSS JOIN unnest(placed.assignment_ids, placed.numbers, placed.prices_micros) AS item (id, number, price_micros)
),
-- One organization may have several orders in a batch. Its account is the one after the last of them.
account AS (
  SELECT DISTINCT ON (organization_id)
    organization_id,
    entry_no,
    balance_micros
  FROM placed
  ORDER BY organization_id, entry_no DESC
),
new_orders AS (
  INSERT INTO orders (organization_id, id, api_key_id, request_id, total_micros, number_count, quantity, created_at)
  SELECT
    organization_id,
    id,
    api_key_id,
    request_id,
    total_micros,
    cardinality(numbers),
    quantity,
    sold_at
  FROM placed
),
new_assignments AS (
  INSERT INTO assignment (
    organization_id,
    id,
    order_id,
    number,
    price_micros,
    inbound_url,
    status_url,
    label,
    campaign_id,
    created_at,
    updated_at
  )
  SELECT
    organization_id,
    id,
    order_id,
    number,
    price_micros,
    inbound_url,
    status_url,
    label,
    campaign_id,
    sold_at,
    sold_at
  FROM taken
),
new_entries AS (
  INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, order_id, created_at)
  SELECT
    organization_id,
    entry_no,
    'order',
    -total_micros,
    balance_micros,
    id,
    sold_at
  FROM placed
),
charged AS (
  UPDATE organization
  SET
    balance_micros = account.balance_micros,
    entry_no = account.entry_no
  FROM account
  WHERE organization.id = account.organization_id
)
UPDATE phone_number
SET
  assignment_id = taken.id,
  held_by = NULL,
  free_at = NULL,
  hold_id = NULL
FROM taken
WHERE phone_number.number = taken.number;
