"""Creates organizations with keys, brands and campaigns, the inventory, orders, assignments and the ledger."""

from alembic import op

revision = "0001"
down_revision = None

SCHEMA = """
CREATE TABLE organization (
  id             uuid        NOT NULL,
  name           text        NOT NULL,
  balance_micros bigint      NOT NULL DEFAULT 0,
  entry_no       bigint      NOT NULL DEFAULT 0,  -- number of its newest ledger entry
  revision       bigint      NOT NULL DEFAULT 0,  -- +1 by every change of its keys, brands, campaigns
  created_at     timestamptz NOT NULL,
  CONSTRAINT organization_pkey PRIMARY KEY (id),
  CONSTRAINT organization_balance_not_negative CHECK (balance_micros >= 0)
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);

CREATE TABLE api_key (
  id              uuid        NOT NULL,
  organization_id uuid        NOT NULL,
  digest          bytea       NOT NULL,            -- SHA-256 of the key
  scopes          text[]      NOT NULL,
  created_at      timestamptz NOT NULL,
  expires_at      timestamptz,
  revoked_at      timestamptz,
  CONSTRAINT api_key_pkey PRIMARY KEY (id),
  CONSTRAINT api_key_of_organization UNIQUE (organization_id, id),
  CONSTRAINT api_key_digest_unique UNIQUE (digest),
  CONSTRAINT api_key_digest_is_sha256 CHECK (octet_length(digest) = 32),
  CONSTRAINT api_key_organization_fkey FOREIGN KEY (organization_id) REFERENCES organization (id)
);

CREATE TABLE brand (
  id              uuid NOT NULL,
  organization_id uuid NOT NULL,
  name            text NOT NULL,
  identity_status text NOT NULL,
  CONSTRAINT brand_pkey PRIMARY KEY (id),
  CONSTRAINT brand_of_organization UNIQUE (organization_id, id),
  CONSTRAINT brand_identity_status_known
    CHECK (identity_status IN ('SELF_DECLARED','UNVERIFIED','VERIFIED','VETTED_VERIFIED')),
  CONSTRAINT brand_organization_fkey FOREIGN KEY (organization_id) REFERENCES organization (id)
);

CREATE TABLE campaign (
  id              uuid NOT NULL,
  organization_id uuid NOT NULL,
  brand_id        uuid,
  name            text NOT NULL,
  status          text NOT NULL,
  CONSTRAINT campaign_pkey PRIMARY KEY (id),
  CONSTRAINT campaign_of_organization UNIQUE (organization_id, id),
  CONSTRAINT campaign_status_known CHECK (status IN ('PENDING','ACTIVE','REJECTED','EXPIRED')),
  CONSTRAINT campaign_organization_fkey FOREIGN KEY (organization_id) REFERENCES organization (id),
  CONSTRAINT campaign_brand_fkey FOREIGN KEY (organization_id, brand_id) REFERENCES brand (organization_id, id)
);

-- One row a number, and its whole state: what an order locks is what it decides on.
-- No index may name assignment_id: every sale changes it, and must stay a HOT update.
CREATE TABLE phone_number (
  number        text COLLATE "C" NOT NULL,
  number_type   text     NOT NULL,
  sms_enabled   boolean  NOT NULL,
  mms_enabled   boolean  NOT NULL,
  price_micros  bigint   NOT NULL,
  assignment_id uuid,              -- the live assignment; null: nobody's
  held_by       uuid,              -- organization that may take it before free_at; null with free_at: quarantine
  free_at       timestamptz,       -- from then on anyone may take it; null: at once
  CONSTRAINT phone_number_pkey PRIMARY KEY (number),
  CONSTRAINT phone_number_type_known CHECK (number_type IN ('local','toll_free','short_code')),
  CONSTRAINT phone_number_price_not_negative CHECK (price_micros >= 0),
  CONSTRAINT phone_number_one_state
    CHECK ((assignment_id IS NULL OR free_at IS NULL) AND (held_by IS NULL OR free_at IS NOT NULL))
) WITH (fillfactor = 90);

CREATE TABLE orders (
  organization_id uuid        NOT NULL,
  id              uuid        NOT NULL,            -- uuid7, given before the first attempt
  api_key_id      uuid        NOT NULL,
  request_id      text        NOT NULL,
  total_micros    bigint      NOT NULL,
  created_at      timestamptz NOT NULL,
  CONSTRAINT orders_pkey PRIMARY KEY (organization_id, id),
  CONSTRAINT orders_total_not_negative CHECK (total_micros >= 0),
  CONSTRAINT orders_api_key_fkey FOREIGN KEY (organization_id, api_key_id) REFERENCES api_key (organization_id, id)
);

CREATE TABLE assignment (
  organization_id uuid        NOT NULL,
  id              uuid        NOT NULL,            -- uuid7: (organization_id, id) descending is "newest first"
  order_id        uuid        NOT NULL,
  number          text COLLATE "C" NOT NULL,
  inbound_url     text,
  status_url      text,
  label           text,
  campaign_id     uuid,
  created_at      timestamptz NOT NULL,
  updated_at      timestamptz NOT NULL,
  released_at     timestamptz,
  CONSTRAINT assignment_pkey PRIMARY KEY (organization_id, id),
  CONSTRAINT assignment_order_fkey FOREIGN KEY (organization_id, order_id) REFERENCES orders (organization_id, id),
  CONSTRAINT assignment_number_fkey FOREIGN KEY (number) REFERENCES phone_number (number),
  CONSTRAINT assignment_campaign_fkey FOREIGN KEY (organization_id, campaign_id)
    REFERENCES campaign (organization_id, id)
);
CREATE UNIQUE INDEX assignment_one_live_per_number ON assignment (number) WHERE released_at IS NULL;

CREATE TABLE ledger_entry (
  organization_id uuid        NOT NULL,
  entry_no        bigint      NOT NULL,            -- 1, 2, 3 … without gaps
  kind            text        NOT NULL,
  amount_micros   bigint      NOT NULL,            -- what it adds to the balance
  balance_micros  bigint      NOT NULL,            -- the balance after it
  order_id        uuid,
  note            text,
  created_at      timestamptz NOT NULL,
  CONSTRAINT ledger_entry_pkey PRIMARY KEY (organization_id, entry_no),
  CONSTRAINT ledger_entry_balance_not_negative CHECK (balance_micros >= 0),
  CONSTRAINT ledger_entry_kind
    CHECK ((kind = 'order' AND order_id IS NOT NULL AND amount_micros <= 0) OR (kind = 'credit' AND order_id IS NULL)),
  CONSTRAINT ledger_entry_order_fkey FOREIGN KEY (organization_id, order_id) REFERENCES orders (organization_id, id)
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
