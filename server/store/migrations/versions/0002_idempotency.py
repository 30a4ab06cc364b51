"""Creates idempotency keys. Each stores the response to its order, for a client that sends the order again."""

from alembic import op

revision = "0002"
down_revision = "0001"

SCHEMA = """
CREATE TABLE idempotency_key (
  organization_id uuid        NOT NULL,
  key             text COLLATE "C" NOT NULL,
  fingerprint     bytea       NOT NULL,            -- SHA-256 of what was asked for
  order_id        uuid        NOT NULL,
  answer          bytea       NOT NULL,            -- the serialized answer, byte for byte
  created_at      timestamptz NOT NULL,
  CONSTRAINT idempotency_key_pkey PRIMARY KEY (organization_id, key)
);
CREATE INDEX idempotency_key_created_at ON idempotency_key (created_at);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
