-- Keys of calls (reads.py).

-- name: find_valid_keys
SELECT
  digest,
  id::text AS api_key_id,
  organization_id::text,
  scopes
FROM api_key
WHERE digest = ANY (:'digests'::bytea[])
  AND revoked_at IS NULL
  AND (expires_at IS NULL OR expires_at > clock_timestamp());
