-- What `ordernumbers archive` has moved from the database to a file. The ledger goes on after its last archived entry.
CREATE TABLE archive (
  organization_id uuid NOT NULL,
  archived_before timestamptz NOT NULL,
  entry_no bigint NOT NULL DEFAULT 0,
  balance_micros bigint NOT NULL DEFAULT 0,
  entries_until timestamptz,
  CONSTRAINT archive_pkey PRIMARY KEY (organization_id),
  CONSTRAINT archive_organization_fkey FOREIGN KEY (organization_id) REFERENCES organization (id)
);
-- The oldest revision whose code may run on this schema.
COMMENT ON TABLE alembic_version IS '0002';
