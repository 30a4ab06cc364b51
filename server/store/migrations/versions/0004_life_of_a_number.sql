-- Of a live hold. A server that does not know the column may leave it beside an assignment, where it has no meaning.
ALTER TABLE phone_number ADD COLUMN hold_id uuid;
-- The end of the rest after a release. A hold during the rest must not shorten it.
ALTER TABLE phone_number ADD COLUMN rest_until timestamptz;
-- Null if the number was imported by a program that did not know the column.
ALTER TABLE phone_number ADD COLUMN imported_at timestamptz;
-- Blocks of consecutive numbers are sold together. Their updates stay HOT only if their pages have room for new rows.
ALTER TABLE phone_number SET (fillfactor = 50);

-- How many numbers a bulk order was for. Null for an order of named numbers.
ALTER TABLE orders ADD COLUMN quantity bigint;
-- The RPC of the response. Null for an order. Then order_id is the id of an order, otherwise that of another write.
ALTER TABLE idempotency_key ADD COLUMN method text;

CREATE TABLE hold (
  organization_id uuid NOT NULL,
  id uuid NOT NULL,
  api_key_id uuid NOT NULL,
  request_id text NOT NULL,
  numbers text [] NOT NULL,
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  released_at timestamptz,
  CONSTRAINT hold_pkey PRIMARY KEY (organization_id, id),
  CONSTRAINT hold_ends CHECK (expires_at > created_at),
  CONSTRAINT hold_api_key_fkey FOREIGN KEY (organization_id, api_key_id) REFERENCES api_key (organization_id, id)
);
CREATE INDEX hold_expires_at ON hold (organization_id, expires_at);

-- What happened to numbers, besides orders. Append-only. The id is that of the write.
CREATE TABLE number_event (
  number text COLLATE "C" NOT NULL,
  id uuid NOT NULL,
  kind text NOT NULL,
  organization_id uuid,
  api_key_id uuid,
  request_id text,
  before jsonb NOT NULL DEFAULT '{}',
  after jsonb NOT NULL DEFAULT '{}',
  created_at timestamptz NOT NULL,
  CONSTRAINT number_event_pkey PRIMARY KEY (number, id),
  CONSTRAINT number_event_kind_known CHECK (kind IN ('changed', 'held', 'hold_released', 'routed', 'released'))
);
-- The oldest revision whose code may run on this schema.
COMMENT ON TABLE alembic_version IS '0002';
