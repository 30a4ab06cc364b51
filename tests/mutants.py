"""Breaks the code in known ways, one after the other, and shows that a test notices each: `make test-mutants`.

Each mutant is a copy of the repository with one text in it replaced by another.
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
    """What is broken, where and how, and the tests that shall notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


ORDERS, DECISION, BATCHING = "server/store/orders.py", "server/rules/ordering.py", "server/batching.py"
PIPELINE, CONNECTION = "server/store/connection.py", "server/order_connection.py"
TRANSACTION = "tests/store/test_order_transaction.py"
FAILOVER = "tests/store/test_failover.py"
RETRIES = "tests/store/test_retries.py"
MUTANTS = (
    Mutant("no sorted locking", ORDERS, ".order_by(_n.number)", ".order_by(func.md5(_n.number))", TRANSACTION),
    Mutant("no sorted locking of organizations", ORDERS, ".order_by(_o.id)", ".order_by(func.random())", TRANSACTION),
    Mutant(
        "no FOR UPDATE",
        ORDERS,
        ".order_by(_n.number)\n        .with_for_update(key_share=True, skip_locked=skip_locked)",
        ".order_by(_n.number)",
        TRANSACTION,
    ),
    Mutant(
        "no unique index",
        "server/store/migrations/versions/0001_the_sale.py",
        "CREATE UNIQUE INDEX assignment_one_live_per_number",
        "CREATE INDEX assignment_one_live_per_number",
        TRANSACTION,
    ),
    Mutant(
        "answer before commit",
        ORDERS,
        "        raise OutcomeUnknown(placed) from error",
        "        return",
        "tests/faults/test_connections.py tests/store/test_order_transaction.py",
    ),
    Mutant(
        "no second look at a revoked key",
        DECISION,
        "if key is None or not key.is_valid(state.now):",
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
        "ledger entry left out",
        ORDERS,
        '            new_entries.cte("new_entries"),\n',
        "",
        TRANSACTION,
    ),
    Mutant(
        "`unavailable` cut short",
        DECISION,
        "shortage=Shortage(available, unavailable),",
        "shortage=Shortage(available, unavailable[:1]),",
        "tests/contract/test_contract.py",
    ),
    Mutant(
        "an unknown outcome is not looked up",
        ORDERS,
        'if sent and results["found"].rows:',
        "if False:",
        "tests/store/test_batching.py",
    ),
    Mutant(
        "a claimed key is not given back",
        ORDERS,
        "if claimed else []",
        "if False else []",
        "tests/store/test_batching.py",
    ),
    Mutant(
        "503 for what may have been carried out",
        "server/pending.py",
        "self.stage = Stage.RUNNING",
        "pass",
        "tests/store/test_batching.py",
    ),
    Mutant(
        "503 from the edge for what may have been carried out",
        "envoy/edge.lua",
        '    status = "504"',
        '    status = "503"',
        "tests/faults/test_kills.py",
    ),
    Mutant(
        "a replay takes the lock",
        ORDERS,
        "or_(w.key.is_(None), not_(known))",
        "true()",
        "tests/store/test_batching.py",
    ),
    Mutant(
        "sent after its caller was told",
        CONNECTION,
        "[pending for pending in batch if pending.begin()]",
        "[pending for pending in batch if pending.begin() or True]",
        FAILOVER,
    ),
    Mutant(
        "a caller that gives up ends the opening of the connection",
        PIPELINE,
        "await asyncio.shield(self._opening)",
        "await self._opening",
        FAILOVER,
    ),
    Mutant(
        "a connection is kept after any error",
        CONNECTION,
        "if isinstance(error, HARMLESS):",
        "if not isinstance(error, OutcomeUnknown):",
        FAILOVER,
    ),
    Mutant("a warning with the COMMIT is ignored", ORDERS, " or connection.was_warned:", ":", FAILOVER),
    Mutant(
        "commits left behind are not counted",
        CONNECTION,
        "self._unsettled.add(connection.backend)",
        "pass",
        FAILOVER,
    ),
    Mutant(
        "idle connections are not looked at",
        CONNECTION,
        "if self._connection.is_open and not self._free.locked():",
        "if False:",
        FAILOVER,
    ),
    Mutant("the slow lane gives up at once", BATCHING, "AWAY_MAX = 2", "AWAY_MAX = 1", FAILOVER),
    Mutant(
        "the slow lane tries a number as often as it is wanted",
        BATCHING,
        "self._queue.take_without(self._numbers)",
        "self._queue.take_without(set())",
        "tests/store/test_batching.py",
    ),
    Mutant(
        "synchronous_commit is left off",
        ORDERS,
        "CASE durable WHEN 'off' THEN 'on' ELSE durable END",
        "durable",
        FAILOVER,
    ),
    Mutant(
        "a read-only server is no trouble",
        CONNECTION,
        "await place(connection, [], _no_answer, limits)",
        "pass",
        FAILOVER,
    ),
    Mutant(
        "keys are renewed by every call",
        "server/rpc/calls.py",
        "if answer.key_seen:",
        "if True:",
        "tests/unit/test_calls.py",
    ),
    Mutant(
        "a field of the order is answered and not kept",
        ORDERS,
        'TOLD: dict[str, Any] = {"inbound_url": Text, ',
        "TOLD: dict[str, Any] = {",
        TRANSACTION,
    ),
    Mutant(
        "one field is kept as another",
        ORDERS,
        "**{name: t[name] for name in TOLD},",
        "**{name: t[name] for name in TOLD} | {'status_url': t.inbound_url},",
        TRANSACTION,
    ),
    Mutant(
        "keyed orders lock numbers in no order",
        ORDERS,
        '("lock_unanswered", partial(_lock_numbers, _unanswered())),',
        '("lock_unanswered", lambda **how: _lock_numbers(_unanswered(), **how).order_by(None)'
        ".order_by(func.md5(_n.number))),",
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
        "READ COMMITTED is not asked for",
        ORDERS,
        '"BEGIN ISOLATION LEVEL READ COMMITTED"',
        '"BEGIN"',
        TRANSACTION,
    ),
    Mutant(
        "a sale's time is when its transaction began",
        ORDERS,
        "select(func.clock_timestamp(), cast(_k.id, Text)",
        "select(func.now(), cast(_k.id, Text)",
        TRANSACTION,
    ),
    Mutant(
        "a change's time is when its transaction began",
        "server/store/admin.py",
        "_NOW = func.clock_timestamp()",
        "_NOW = func.now()",
        TRANSACTION,
    ),
    Mutant(
        "a number that was not locked does not exist",
        ORDERS,
        "if claims or skip_locked:",
        "if skip_locked:",
        TRANSACTION,
    ),
    Mutant(
        "a number that was skipped does not exist",
        ORDERS,
        "if claims or skip_locked:",
        "if claims:",
        TRANSACTION,
    ),
    Mutant(
        "an organization that was skipped is not busy",
        ORDERS,
        "        busy |= {order.organization_id for order in orders} - accounts.keys()\n",
        "",
        TRANSACTION,
    ),
    Mutant(
        "a write without an answer in time is undone",
        ORDERS,
        "        if _is_certain(error):",
        "        if _is_certain(error) or isinstance(error, asyncio.CancelledError):",
        TRANSACTION,
    ),
    Mutant(
        "what was in a deadlock is not run again",
        CONNECTION,
        "IN_THE_WAY = (errors.SerializationFailure, errors.DeadlockDetected)",
        "IN_THE_WAY = (errors.SerializationFailure,)",
        RETRIES,
    ),
    Mutant(
        "what could not be serialized is not run again",
        CONNECTION,
        "IN_THE_WAY = (errors.SerializationFailure, errors.DeadlockDetected)",
        "IN_THE_WAY = (errors.DeadlockDetected,)",
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
        "503 for an unknown outcome when time is up",
        "server/pending.py",
        "if self.stage not in (Stage.TOLD, Stage.UNCONFIRMED):",
        "if self.stage is not Stage.TOLD:",
        RETRIES,
    ),
    Mutant(
        "the queue has no end",
        BATCHING,
        "self._count >= self._orders_max or ",
        "",
        "tests/store/test_batching.py",
    ),
    Mutant(
        "an order that is no longer wanted is lost",
        "server/pending.py",
        "        return unwanted\n",
        "        return unwanted[1:]\n",
        "tests/unit/test_pending.py",
    ),
)


def main() -> int:
    """Run every mutant, or those whose names contain the words given; the number that nobody noticed."""
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
    """Its file's text with the mistake in it. Exits when the code has changed and the mistake fits no more."""
    text = (root / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def is_noticed(mutant: Mutant) -> bool:
    """Whether the tests fail on it, and not because they could not be run."""
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
    by = failed[0].split(" - ")[0].split("::")[-1] if noticed else f"nobody (pytest said {status})"
    print(f"{mutant.name}: noticed by {by}, {time.monotonic() - began:.0f} s", flush=True)
    return noticed


def tested(copy: Path, tests: str) -> tuple[int | None, str]:
    """pytest's exit status, None if it did not end in time, and what it printed."""
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
