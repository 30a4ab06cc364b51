-- Statements that every connection uses. How these files are read: statements.py.

-- name: begin
-- The session has set the isolation level.
BEGIN;

-- name: commit
COMMIT;

-- name: rollback
-- psycopg's own rollback would also deallocate the prepared statements.
ROLLBACK;

-- name: limit_read
-- Until the end of the round trip, which is one transaction.
SELECT set_config('statement_timeout', :'statement_timeout', true);

-- name: identify_backend
-- A process id alone is used again after its process has ended.
SELECT pid || ' ' || backend_start
FROM pg_stat_activity
WHERE pid = pg_backend_pid();

-- name: find_running
-- Which of these PostgreSQL backends still run a transaction. An idle one has ended it.
SELECT pid || ' ' || backend_start
FROM pg_stat_activity
WHERE pid || ' ' || backend_start = ANY (:'backends'::text[])
  AND state IS DISTINCT FROM 'idle';
