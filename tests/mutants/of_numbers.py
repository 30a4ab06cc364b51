"""Mutants of the life of a number: search, hold, list, change, release, and their histories."""

from tests.mutants.mutant import Mutant

HOLDS, RELEASES = "tests/contract/test_holds.py", "tests/contract/test_release.py"
SEARCHES, LISTS = "tests/contract/test_search.py", "tests/contract/test_list.py"
NUMBERS, LOOK_UPS = "tests/contract/test_numbers.py", "tests/contract/test_order_lookup.py"
REPLAYS, BULK_ORDERS = "tests/contract/test_replays.py", "tests/contract/test_bulk_orders.py"
HOLD_SQL, ASSIGNMENT_SQL = "server/store/sql/hold.sql", "server/store/sql/assignment.sql"
QUERY_SQL, SEARCH_SQL = "server/store/sql/query.sql", "server/store/sql/search.sql"
LIST_ORDER = "    AND assignment.id < :'before'::uuid\n"
CALLER_OF_LIST = """of the organization for a page.
WITH caller AS (
  SELECT scopes
  FROM api_key
  WHERE id = :'api_key_id'::uuid
    AND revoked_at IS NULL
"""
AVAILABLE = "    AND n.assignment_id IS NULL\n    AND (n.free_at IS NULL OR n.free_at <= statement_timestamp())\n"

MUTANTS = (
    Mutant(
        "a hold is ignored by an order",
        "server/rules/ordering.py",
        "return number.free_at is None or number.free_at <= now or number.held_by == organization_id",
        "return True",
        HOLDS,
    ),
    Mutant(
        "an expired hold still counts",
        "server/rules/ordering.py",
        "number.free_at is None or number.free_at <= now or",
        "number.free_at is None or",
        f"tests/unit/test_holding.py {HOLDS}",
    ),
    Mutant(
        "an expired hold counts towards the limit",
        HOLD_SQL,
        "  AND hold.expires_at > clock_timestamp()\n  AND hold.released_at IS NULL\n  AND phone_number.hold_id",
        "  AND hold.released_at IS NULL\n  AND phone_number.hold_id",
        HOLDS,
    ),
    Mutant(
        "a hold shortens the rest of a number",
        HOLD_SQL,
        "greatest(rest_until, :'expires_at'::timestamptz)",
        ":'expires_at'::timestamptz",
        HOLDS,
    ),
    Mutant(
        "the end of a hold ends the rest of its numbers",
        HOLD_SQL,
        "  held_by = CASE WHEN rest_until > :'ended_at'::timestamptz THEN held_by END,\n",
        "  held_by = NULL,\n",
        f"{HOLDS} tests/store",
    ),
    Mutant(
        "the end of a hold frees the numbers of a newer hold",
        HOLD_SQL,
        "    WHERE phone_number.hold_id = hold.id\n      AND phone_number.held_by = hold.organization_id\n",
        "    WHERE phone_number.held_by = hold.organization_id\n",
        HOLDS,
    ),
    Mutant(
        "a number is released without a rest",
        ASSIGNMENT_SQL,
        "  free_at = :'available_at'::timestamptz,\n",
        "  free_at = :'released_at'::timestamptz,\n",
        RELEASES,
    ),
    Mutant("the routing is kept after a release", ASSIGNMENT_SQL, "    label = NULL,\n", "", RELEASES),
    Mutant(
        "a release by another organization is our own",
        ASSIGNMENT_SQL,
        "    AND phone_number.held_by = assignment.organization_id\n",
        "",
        f"{RELEASES} tests/store",
    ),
    Mutant(
        "a cursor skips a number",
        QUERY_SQL,
        "  LIMIT :'rows'::integer\n) AS page ON true",
        "  OFFSET 1\n  LIMIT :'rows'::integer\n) AS page ON true",
        LISTS,
    ),
    Mutant("a cursor repeats a number", QUERY_SQL, LIST_ORDER, LIST_ORDER.replace("<", "<="), LISTS),
    Mutant(
        "the list of another organization",
        QUERY_SQL,
        "  WHERE assignment.organization_id = :'organization_id'::uuid\n" + LIST_ORDER,
        "  WHERE :'organization_id'::uuid IS NOT NULL\n" + LIST_ORDER,
        LISTS,
    ),
    Mutant(
        "a revoked key still reads",
        QUERY_SQL,
        CALLER_OF_LIST,
        CALLER_OF_LIST.replace("    AND revoked_at IS NULL\n", ""),
        f"tests/concurrency/test_revocation.py {LISTS}",
    ),
    Mutant(
        "a search of digits shows the held numbers of others",
        SEARCH_SQL,
        AVAILABLE,
        "    AND n.assignment_id IS NULL\n",
        SEARCHES,
    ),
    Mutant(
        "a pattern is looked for after the area code only",
        "server/store/searches.py",
        'has_pattern=f"%{pattern}%"',
        'has_pattern=f"{prefix_of(criteria)}%{pattern}%"',
        SEARCHES,
    ),
    Mutant(
        "a bulk order takes numbers that others hold",
        "server/store/sql/order.sql",
        "  AND (free_at IS NULL OR free_at <= clock_timestamp())\nORDER BY phone_number.number\nLIMIT",
        "ORDER BY phone_number.number\nLIMIT",
        f"{BULK_ORDERS} tests/store",
    ),
    Mutant(
        "an order is looked up as it is now",
        QUERY_SQL,
        "    coalesce(earlier.was, '{}') AS was",
        "    '{}'::jsonb AS was",
        LOOK_UPS,
    ),
    Mutant(
        "an order is looked up as it was before its last change",
        QUERY_SQL,
        "ORDER BY changed.key, number_event.created_at, number_event.id",
        "ORDER BY changed.key, number_event.created_at DESC, number_event.id",
        LOOK_UPS,
    ),
    Mutant(
        "a named order is looked up as a bulk order",
        "server/reading.py",
        "if order.quantity is None:",
        "if False:",
        LOOK_UPS,
    ),
    Mutant(
        "equal values are a change",
        "server/rules/assignments.py",
        "after if after == before else after._replace(updated_at=state.now)",
        "after._replace(updated_at=state.now)",
        f"tests/unit/test_holding.py {NUMBERS}",
    ),
    Mutant(
        "a fingerprint without its method",
        "server/api/call.py",
        "dumps([self.method, present], sort_keys=True)",
        "dumps([present], sort_keys=True)",
        REPLAYS,
    ),
    Mutant(
        "an order that is only checked uses its idempotency key",
        "server/api/orders.py",
        "if request.validate_only:",
        "if request.validate_only and order.idempotency is None:",
        "tests/contract/test_validate_only.py",
    ),
    Mutant(
        "reads have no limit",
        "server/reading.py",
        "return self._count >= self._count_max",
        "return False",
        "tests/contract/test_read_limits.py",
    ),
    Mutant(
        "an unknown outcome of a write is not looked up",
        "server/store/writes.py",
        'if sent and results["found"].rows:',
        "if False:",
        "tests/store/test_unknown_outcomes_of_writes.py",
    ),
)
