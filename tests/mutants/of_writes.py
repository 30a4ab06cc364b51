"""Mutants of what writes, reads and searches do at the same time: locks, unknown outcomes, and room for HOT updates."""

from tests.mutants.mutant import Mutant

WRITES, UNKNOWN = "tests/store/test_writes.py", "tests/store/test_unknown_outcomes_of_writes.py"
READS, PLANS, HOT = "tests/store/test_reads.py", "tests/store/test_plans.py", "tests/store/test_hot_updates.py"
HOLD_SQL, ASSIGNMENT_SQL = "server/store/sql/hold.sql", "server/store/sql/assignment.sql"
LOCK_NUMBERS, LOCK_ORGANIZATION = (
    "        **steps.lock(write),\n",
    '        "accounts": LOCK_ORGANIZATIONS(organization_ids=array([write.organization_id])),\n',
)
KEY_OF_SEARCH = "WITH RECURSIVE caller AS (\n  SELECT scopes\n  FROM api_key\n  WHERE id = :'api_key_id'::uuid\n"

MUTANTS = (
    Mutant(
        "a release locks numbers in no order",
        ASSIGNMENT_SQL,
        "ORDER BY phone_number.number\nFOR NO KEY UPDATE",
        "ORDER BY md5(number)\nFOR NO KEY UPDATE",
        WRITES,
    ),
    Mutant(
        "the end of a hold locks numbers in no order",
        HOLD_SQL,
        "ORDER BY phone_number.number\nFOR NO KEY UPDATE",
        "ORDER BY md5(number)\nFOR NO KEY UPDATE",
        WRITES,
    ),
    Mutant(
        "a write locks its organization before its numbers",
        "server/store/writes.py",
        LOCK_NUMBERS + LOCK_ORGANIZATION,
        LOCK_ORGANIZATION + LOCK_NUMBERS,
        WRITES,
    ),
    Mutant(
        "a bulk order waits for locked numbers",
        "server/store/sql/order.sql",
        "FOR NO KEY UPDATE SKIP LOCKED;",
        "FOR NO KEY UPDATE;",
        WRITES,
    ),
    Mutant(
        "a bulk order is refused while others may give its numbers back",
        "server/store/bulk_orders.py",
        "return Retry() if len(action.proposed) >= action.quantity else too_few(",
        "return too_few(",
        WRITES,
    ),
    Mutant(
        "the response of an earlier attempt is taken for a replay",
        ASSIGNMENT_SQL,
        "      AND stored.order_id = :'id'::uuid\n",
        "      AND stored.order_id = :'id'::uuid\n      AND false\n",
        UNKNOWN,
    ),
    Mutant(
        "a write that commits while the next attempt waits at SERIALIZABLE is missed",
        "server/store/writes.py",
        "        await wait_for_locks(connection, limits, [write.organization_id])\n",
        "        pass\n",
        UNKNOWN,
    ),
    Mutant(
        "SERIALIZABLE is only REPEATABLE READ",
        "server/store/connection.py",
        '"default_transaction_isolation": settings.isolation,',
        '"default_transaction_isolation": settings.isolation.replace("serializable", "repeatable read"),',
        "tests/store/test_serializable.py",
    ),
    Mutant(
        "a read fails after a conflict",
        "server/store/reads.py",
        "await await_with_retries(lambda: self._run_once(statements, ends), PAUSE_SECONDS_MAX)",
        "await self._run_once(statements, ends)",
        READS,
    ),
    Mutant(
        "the purge ends at a conflict",
        "server/store/idempotency.py",
        "await await_with_retries(step)",
        "await step()",
        "tests/store/test_purge.py",
    ),
    Mutant(
        "the end of an empty hold is not found again",
        ASSIGNMENT_SQL,
        "      AND hold.released_at = :'at'::timestamptz\n",
        "      AND hold.released_at < :'at'::timestamptz\n",
        UNKNOWN,
    ),
    Mutant(
        "writes are accepted beside too many unsettled commits",
        "server/admission.py",
        " or self._shared.unsettled.is_full",
        "",
        UNKNOWN,
    ),
    Mutant(
        "a revoked key still searches",
        "server/store/sql/search.sql",
        KEY_OF_SEARCH + "    AND revoked_at IS NULL\n",
        KEY_OF_SEARCH,
        "tests/concurrency/test_revocation.py",
    ),
    Mutant(
        "every search starts at the first number",
        "server/store/searches.py",
        '"random_digits": _random("0123456789")',
        '"random_digits": "0" * NUMBER_CHARS_MAX',
        PLANS,
    ),
    Mutant(
        "searches always take the number after a gap",
        "server/store/searches.py",
        'random_sides=_random("01")',
        'random_sides=_random("1")',
        PLANS,
    ),
    Mutant(
        "a search does not go round",
        "server/store/sql/search.sql",
        "(:'prefix', start.number)",
        "(:'prefix', '')",
        PLANS,
    ),
    Mutant(
        "all workers show the same numbers",
        "server/reading.py",
        "return crc32(number.encode()) % workers",
        "return 0",
        READS,
    ),
    Mutant(
        "reads wait behind orders",
        "server/api/service.py",
        "return self._reads.is_full if method in READS else self._writer.is_full",
        "return self._batcher.is_full",
        "tests/faults/test_overload.py",
    ),
    Mutant(
        "an index names what a sale changes",
        "server/store/search_indexes.py",
        "btree (number_type, sms_enabled, mms_enabled, number)",
        "btree (number_type, sms_enabled, mms_enabled, number, free_at)",
        HOT,
    ),
    Mutant(
        "the pages of numbers have no room",
        "server/store/migrations/versions/0004_life_of_a_number.sql",
        "fillfactor = 50",
        "fillfactor = 100",
        HOT,
    ),
)
