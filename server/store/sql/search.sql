-- Numbers that every organization can order (searches.py): neither assigned, nor held, nor resting.
-- Each read looks at its key in the same statement. Without a row the key is not valid.

-- name: search
-- The index phone_number_search has the numbers of each class in order: a type with its capabilities. In each class
-- the search starts at a random number and goes round once. `random_digits` has one digit per position.
-- Only that index can serve a comparison of these four columns. The planner would choose the primary key for simpler
-- conditions, and would read all numbers to find that a class has none.
--
-- A random number is a poor start, because most numbers do not exist, and all those in a gap lead to the same next one.
-- So `walk` fixes the digits from left to right. Where its random number does not exist, it takes the digits that the
-- nearest existing number has up to the first different one, and random ones after them. `random_sides` has one digit
-- per position: 1 for the nearest one above, 0 for the one below. Otherwise the first number after a gap, or after the
-- last one, would be the start of most searches.
WITH RECURSIVE caller AS (
  SELECT scopes
  FROM api_key
  WHERE id = :'api_key_id'::uuid
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
),
class AS (
  SELECT
    types.number_type,
    sms.sms_enabled,
    mms.mms_enabled
  FROM unnest(:'number_types'::text[]) AS types (number_type)
  CROSS JOIN unnest(:'sms_enabled'::boolean[]) AS sms (sms_enabled)
  CROSS JOIN unnest(:'mms_enabled'::boolean[]) AS mms (mms_enabled)
),
walk AS (
  SELECT
    class.*,
    :'prefix'::text COLLATE "C" AS number,
    length(:'prefix') AS fixed
  FROM class
  UNION ALL
  SELECT
    walk.number_type,
    walk.sms_enabled,
    walk.mms_enabled,
    found.number,
    common.digits + 1
  FROM walk
  CROSS JOIN LATERAL (
    SELECT
      left(walk.number, walk.fixed) AS prefix,
      left(walk.number, walk.fixed) || substr(:'random_digits', walk.fixed + 1) AS target,
      substr(:'random_sides', walk.fixed + 1, 1) = '1' AS is_above
  ) AS next
  CROSS JOIN LATERAL (
    SELECT coalesce(
        (
          SELECT n.number
          FROM phone_number AS n
          WHERE next.is_above
            AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
              >= (walk.number_type, walk.sms_enabled, walk.mms_enabled, next.target)
            AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
              < (walk.number_type, walk.sms_enabled, walk.mms_enabled, next.prefix || ':')
          ORDER BY n.number_type, n.sms_enabled, n.mms_enabled, n.number
          LIMIT 1
        ),
        (
          SELECT n.number
          FROM phone_number AS n
          WHERE NOT next.is_above
            AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
              >= (walk.number_type, walk.sms_enabled, walk.mms_enabled, next.prefix)
            AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
              < (walk.number_type, walk.sms_enabled, walk.mms_enabled, next.target)
          ORDER BY n.number_type DESC, n.sms_enabled DESC, n.mms_enabled DESC, n.number DESC
          LIMIT 1
        ),
        (
          SELECT n.number
          FROM phone_number AS n
          WHERE next.is_above
            AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
              >= (walk.number_type, walk.sms_enabled, walk.mms_enabled, next.prefix)
            AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
              < (walk.number_type, walk.sms_enabled, walk.mms_enabled, next.prefix || ':')
          ORDER BY n.number_type, n.sms_enabled, n.mms_enabled, n.number
          LIMIT 1
        ),
        (
          SELECT n.number
          FROM phone_number AS n
          WHERE NOT next.is_above
            AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
              >= (walk.number_type, walk.sms_enabled, walk.mms_enabled, next.prefix)
            AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
              < (walk.number_type, walk.sms_enabled, walk.mms_enabled, next.prefix || ':')
          ORDER BY n.number_type DESC, n.sms_enabled DESC, n.mms_enabled DESC, n.number DESC
          LIMIT 1
        )
      ) AS number
    -- Evaluated once, although its result is used several times.
    OFFSET 0
  ) AS found
  CROSS JOIN LATERAL (
    SELECT count(*)::integer AS digits
    FROM generate_series(1, length(found.number)) AS position
    WHERE left(found.number, position) = left(next.target, position)
  ) AS common
  WHERE walk.fixed <= length(walk.number)
    AND found.number IS NOT NULL
),
start AS (
  SELECT DISTINCT ON (number_type, sms_enabled, mms_enabled) *
  FROM walk
  WHERE fixed > length(:'prefix')
  ORDER BY number_type, sms_enabled DESC, mms_enabled DESC, fixed DESC
),
part AS (
  SELECT
    start.*,
    side.first,
    side.after
  FROM start
  CROSS JOIN LATERAL (
    VALUES (start.number, :'prefix' || ':'), (:'prefix', start.number)
  ) AS side (first, after)
)
SELECT
  caller.scopes,
  available.*
FROM caller
LEFT JOIN LATERAL (
  SELECT page.*
  FROM part
  CROSS JOIN LATERAL (
    (
      SELECT
        n.number,
        n.number_type,
        n.sms_enabled,
        n.mms_enabled,
        n.price_micros
      FROM phone_number AS n
      WHERE :'pattern' = ''
        AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
          >= (part.number_type, part.sms_enabled, part.mms_enabled, part.first)
        AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
          < (part.number_type, part.sms_enabled, part.mms_enabled, part.after)
        AND n.assignment_id IS NULL
        AND (n.free_at IS NULL OR n.free_at <= statement_timestamp())
      ORDER BY n.number_type, n.sms_enabled, n.mms_enabled, n.number
      LIMIT :'rows'::integer
    )
    UNION ALL
    (
      SELECT
        n.number,
        n.number_type,
        n.sms_enabled,
        n.mms_enabled,
        n.price_micros
      FROM (
        SELECT n.number
        FROM phone_number AS n
        WHERE :'pattern' <> ''
          AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
            >= (part.number_type, part.sms_enabled, part.mms_enabled, part.first)
          AND (n.number_type, n.sms_enabled, n.mms_enabled, n.number)
            < (part.number_type, part.sms_enabled, part.mms_enabled, part.after)
          AND strpos(n.number, :'pattern') > 0
        ORDER BY n.number_type, n.sms_enabled, n.mms_enabled, n.number
        -- OFFSET 0 keeps the planner from merging this query into the outer one. The index alone shows which numbers
        -- have the pattern. Few do, so only their rows are read.
        OFFSET 0
      ) AS with_pattern
      JOIN phone_number AS n ON n.number = with_pattern.number
      WHERE n.assignment_id IS NULL
        AND (n.free_at IS NULL OR n.free_at <= statement_timestamp())
      LIMIT :'rows'::integer
    )
  ) AS page
  LIMIT :'rows'::integer
) AS available ON true;

-- name: search_digits
-- For patterns of several digits, which few numbers have. The index phone_number_digits finds all of them, and these
-- come in a random order. LIKE can use that index, and strpos cannot.
WITH caller AS (
  SELECT scopes
  FROM api_key
  WHERE id = :'api_key_id'::uuid
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
)
SELECT
  caller.scopes,
  available.*
FROM caller
LEFT JOIN LATERAL (
  SELECT
    n.number,
    n.number_type,
    n.sms_enabled,
    n.mms_enabled,
    n.price_micros
  FROM phone_number AS n
  WHERE n.number LIKE :'has_pattern'
    AND left(n.number, length(:'prefix')) = :'prefix'
    AND n.number_type = ANY (:'number_types'::text[])
    AND n.sms_enabled = ANY (:'sms_enabled'::boolean[])
    AND n.mms_enabled = ANY (:'mms_enabled'::boolean[])
    AND n.assignment_id IS NULL
    AND (n.free_at IS NULL OR n.free_at <= statement_timestamp())
  ORDER BY md5(n.number || :'random_digits')
  LIMIT :'rows'::integer
) AS available ON true;
