"""Shows that tests fail when the code is wrong: `make test-mutants`.

Each mutant is a copy of the repository in which one text is replaced. At least one of its tests must fail.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RUN_SECONDS_MAX = 600
PARTS = ("server", "gen", "envoy", "protos", "tests", "pyproject.toml", "README.md", "Makefile")


class Mutant(NamedTuple):
    """What is wrong, where and how, and the tests that must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


ORDERS, DECISION, BATCHING = "server/store/orders.py", "server/rules/ordering.py", "server/batching.py"
CONNECTION, ORDER_CONNECTION = "server/store/connection.py", "server/order_connection.py"
PENDING, SQL = "server/pending.py", "server/store/sql/order.sql"
TRANSACTION = "tests/store/test_order_transaction.py"
BATCHES = "tests/store/test_batching.py"
KEYS, UNKNOWN = "tests/store/test_idempotency_keys.py", "tests/store/test_unknown_outcomes.py"
RETRY_CONNECTIONS = "tests/store/test_retry_connections.py"
FAILOVER = "tests/store/test_failover.py"
RETRIES = "tests/store/test_retries.py"
SORTED_NUMBERS = "WHERE number = ANY (:'numbers'::text[])\nORDER BY phone_number.number\nFOR NO KEY UPDATE;"
MUTANTS = (
    Mutant(
        "no sorted locking",
        SQL,
        SORTED_NUMBERS,
        SORTED_NUMBERS.replace("BY phone_number.number", "BY md5(number)"),
        TRANSACTION,
    ),
    Mutant("no sorted locking of organizations", SQL, "ORDER BY organization.id\n", "ORDER BY random()\n", TRANSACTION),
    Mutant("no FOR UPDATE", SQL, SORTED_NUMBERS, SORTED_NUMBERS.replace("\nFOR NO KEY UPDATE", ""), TRANSACTION),
    Mutant(
        "no unique index",
        "server/store/migrations/versions/0001_the_sale.py",
        "CREATE UNIQUE INDEX assignment_one_live_per_number",
        "CREATE INDEX assignment_one_live_per_number",
        "tests/store/test_constraints.py",
    ),
    Mutant(
        "a response before the commit",
        ORDERS,
        "        raise OutcomeUnknown(placed) from error",
        "        return",
        f"tests/faults/test_connections.py {TRANSACTION}",
    ),
    Mutant(
        "no second look at a revoked key",
        DECISION,
        "if key is None or not is_valid(key, state.now):",
        "if key is None:",
        f"{TRANSACTION} tests/concurrency",
    ),
    Mutant(
        "key reuse unchecked",
        DECISION,
        "if stored.fingerprint != order.idempotency.fingerprint:",
        "if False:",
        "tests/contract/test_idempotency.py",
    ),
    Mutant(
        "no ledger entry",
        SQL,
        "    id,\n    sold_at\n  FROM placed\n),\ncharged",
        "    id,\n    sold_at\n  FROM placed\n  LIMIT 0\n),\ncharged",
        TRANSACTION,
    ),
    Mutant(
        "`unavailable` cut short",
        DECISION,
        "shortage=Shortage(available, unavailable),",
        "shortage=Shortage(available, unavailable[:1]),",
        "tests/contract/test_contract.py",
    ),
    Mutant("an unknown outcome is not looked up", ORDERS, 'if sent and results["found"].rows:', "if False:", UNKNOWN),
    Mutant("a claimed key is not released", ORDERS, "if is_claimed else []", "if False else []", KEYS),
    Mutant("503 for an order that may have been carried out", PENDING, "self.stage = Stage.RUNNING", "pass", BATCHES),
    Mutant(
        "503 from the edge for an order that may have been carried out",
        "envoy/edge.lua",
        '    status = "504"',
        '    status = "503"',
        "tests/faults/test_kills.py",
    ),
    Mutant(
        "a replay locks its number",
        SQL,
        "WHERE wanted.key IS NULL\n      OR NOT EXISTS (",
        "WHERE true\n      OR NOT EXISTS (",
        KEYS,
    ),
    Mutant(
        "an order is sent after its caller has a response",
        ORDER_CONNECTION,
        "[pending for pending in batch if pending.begin()]",
        "[pending for pending in batch if pending.begin() or True]",
        FAILOVER,
    ),
    Mutant(
        "a caller that gives up ends the opening of the connection",
        CONNECTION,
        "await asyncio.shield(self._opening)",
        "await self._opening",
        FAILOVER,
    ),
    Mutant(
        "a connection is kept after any error",
        ORDER_CONNECTION,
        "if isinstance(error, HARMLESS):",
        "if not isinstance(error, OutcomeUnknown):",
        FAILOVER,
    ),
    Mutant("a warning with the COMMIT is ignored", ORDERS, " or connection.was_warned:", ":", FAILOVER),
    Mutant(
        "unsettled commits are not counted",
        ORDER_CONNECTION,
        "self._unsettled.add(connection.backend)",
        "pass",
        FAILOVER,
    ),
    Mutant(
        "idle connections are not checked",
        ORDER_CONNECTION,
        "if self._connection.is_open and not self._free.locked():",
        "if False:",
        FAILOVER,
    ),
    Mutant("a retry gives up after one failed connection", BATCHING, "AWAY_MAX = 2", "AWAY_MAX = 1", FAILOVER),
    Mutant(
        "retries of one number run at the same time",
        BATCHING,
        "self._queue.take_without(self._numbers)",
        "self._queue.take_without(set())",
        RETRY_CONNECTIONS,
    ),
    Mutant(
        "synchronous_commit stays off",
        SQL,
        "CASE durable WHEN 'off' THEN 'on' ELSE durable END",
        "durable",
        FAILOVER,
    ),
    Mutant(
        "the health check runs no transaction",
        ORDER_CONNECTION,
        "await place(connection, [], limits)",
        "pass",
        FAILOVER,
    ),
    Mutant(
        "every call renews its cached key",
        "server/rpc/calls.py",
        "if response.key_is_valid:",
        "if True:",
        "tests/unit/test_calls.py",
    ),
    Mutant(
        "a field of the order is returned and not stored",
        SQL,
        "    placed.inbound_url,\n",
        "    NULL AS inbound_url,\n",
        TRANSACTION,
    ),
    Mutant(
        "one field is stored as another",
        SQL,
        "    placed.status_url,\n",
        "    placed.inbound_url AS status_url,\n",
        TRANSACTION,
    ),
    Mutant(
        "orders with a key lock numbers in no order",
        SQL,
        "      )\n  )\nORDER BY phone_number.number\n",
        "      )\n  )\nORDER BY md5(number)\n",
        TRANSACTION,
    ),
    Mutant(
        "an import locks numbers in no order",
        "server/store/inventory.py",
        "      FROM change\n      ORDER BY number\n",
        "      FROM change\n      ORDER BY md5(number)\n",
        TRANSACTION,
    ),
    Mutant(
        "no READ COMMITTED",
        "server/store/sql/session.sql",
        "BEGIN ISOLATION LEVEL READ COMMITTED;",
        "BEGIN;",
        TRANSACTION,
    ),
    Mutant(
        "the time of a sale is the start of its transaction",
        SQL,
        "  clock_timestamp() AS now,",
        "  now() AS now,",
        TRANSACTION,
    ),
    Mutant(
        "the time of a change is the start of its transaction",
        "server/store/admin.py",
        "_NOW = func.clock_timestamp()",
        "_NOW = func.now()",
        TRANSACTION,
    ),
    Mutant(
        "a number that was not locked does not exist",
        ORDERS,
        "if keyed or skip_locked:",
        "if skip_locked:",
        TRANSACTION,
    ),
    Mutant("a number that was skipped does not exist", ORDERS, "if keyed or skip_locked:", "if keyed:", TRANSACTION),
    Mutant(
        "an organization that was skipped does not exist",
        ORDERS,
        "        locked_elsewhere |= {order.organization_id for order in orders} - accounts.keys()\n",
        "",
        TRANSACTION,
    ),
    Mutant(
        "a write without a result in time is taken for rolled back",
        ORDERS,
        "        if _is_rolled_back(error):",
        "        if _is_rolled_back(error) or not isinstance(error, Exception):",
        TRANSACTION,
    ),
    Mutant(
        "no second attempt after a deadlock",
        ORDER_CONNECTION,
        "CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)",
        "CONFLICTS = (errors.SerializationFailure,)",
        RETRIES,
    ),
    Mutant(
        "no second attempt after a serialization failure",
        ORDER_CONNECTION,
        "CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)",
        "CONFLICTS = (errors.DeadlockDetected,)",
        RETRIES,
    ),
    Mutant(
        "503 for an unknown outcome when the database is away",
        BATCHING,
        "if pending.sent is None and pending.times_away >= AWAY_MAX:",
        "if pending.times_away >= AWAY_MAX:",
        RETRIES,
    ),
    Mutant(
        "INTERNAL for an unknown outcome",
        BATCHING,
        "Refusal(Code.INTERNAL if pending.sent is None else Code.TIMEOUT)",
        "Refusal(Code.INTERNAL)",
        RETRIES,
    ),
    Mutant(
        "503 for an unknown outcome at the deadline",
        PENDING,
        "if self.stage not in (Stage.RESPONDED, Stage.UNCONFIRMED):",
        "if self.stage is not Stage.RESPONDED:",
        RETRIES,
    ),
    Mutant("the queue has no limit", BATCHING, "self._count >= self._orders_max or ", "", BATCHES),
    Mutant(
        "an expired order is lost",
        PENDING,
        "        return unwanted\n",
        "        return unwanted[1:]\n",
        "tests/unit/test_pending.py",
    ),
    Mutant(
        "a number in quarantine counts as available",
        "server/store/tables.py",
        "may_order = or_(n.free_at.is_(None), n.free_at <= now)",
        "may_order = or_(n.free_at.is_(None), n.free_at.is_not(None))",
        "tests/store/test_available.py",
    ),
)


def main() -> int:
    """Run all mutants, or those whose names contain the given words. Return the number that no test noticed."""
    began = time.monotonic()
    wanted = [mutant for mutant in MUTANTS if all(word in mutant.name for word in sys.argv[1:])]
    for mutant in wanted:
        mutated(mutant, ROOT)
    survivors = [mutant.name for mutant in wanted if not is_noticed(mutant)]
    minutes = (time.monotonic() - began) / 60
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} mutants were noticed, {minutes:.0f} minutes")
    for name in survivors:
        print(f"NOT NOTICED: {name}")
    return len(survivors)


def mutated(mutant: Mutant, root: Path) -> str:
    """The text of its file with the mistake. Exits if the code has changed and the mistake does not fit any more."""
    text = (root / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def is_noticed(mutant: Mutant) -> bool:
    """Whether a test fails, and not because it could not be run."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="ordernumbers-mutant-") as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for part in PARTS:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
        (copy / mutant.file).write_text(mutated(mutant, copy))
        Path(folder).chmod(0o711)
        status, said = tested(copy, mutant.tests)
    failed = [line for line in said.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
    noticed = status == 1 and bool(failed)
    by = failed[0].split(" - ")[0].split("::")[-1] if noticed else f"no test (pytest exited with {status})"
    print(f"{mutant.name}: noticed by {by}, {time.monotonic() - began:.0f} s", flush=True)
    return noticed


def tested(copy: Path, tests: str) -> tuple[int | None, str]:
    """pytest's exit status and output. The status is None if it did not end in time."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": f"{copy}:{copy / 'gen'}"},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout


if __name__ == "__main__":
    sys.exit(main())
