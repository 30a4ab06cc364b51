-- How many numbers an order is of, and what each cost: so a check can see what is missing. Null in what was written by
-- a server that did not know these columns.
ALTER TABLE orders ADD COLUMN number_count bigint;
ALTER TABLE assignment ADD COLUMN price_micros bigint;
-- The oldest revision whose code may run on this schema.
COMMENT ON TABLE alembic_version IS '0002';
