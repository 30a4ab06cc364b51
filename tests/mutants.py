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
PARTS = ("server", "gen", "envoy", "protos", "tests", "pyproject.toml", "README.md", "Makefile")


class Mutant(NamedTuple):
    """What is broken, where and how, and the tests that shall notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


ORDERS, DECISION, BATCHING = "server/store/orders.py", "server/ordering.py", "server/batching.py"
PIPELINE, CONNECTION = "server/store/pipeline.py", "server/order_connection.py"
TRANSACTION = "tests/store/test_order_transaction.py"
FAILOVER = "tests/store/test_failover.py"
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
        "            raise OutcomeUnknown(placed) from error",
        "            return",
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
        "if remembered.fingerprint != order.idempotency.fingerprint:",
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
    Mutant("a warning with the COMMIT is ignored", ORDERS, "if connection.was_warned:", "if False:", FAILOVER),
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
        PIPELINE,
        "WHERE current_setting('synchronous_commit') = 'off'",
        "WHERE current_setting('synchronous_commit') = 'never'",
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
        "server/rpc.py",
        "if answer.key_seen:",
        "if True:",
        "tests/unit/test_calls.py",
    ),
)


def main() -> int:
    """Run every mutant, or those whose names contain the words given; the number that nobody noticed."""
    wanted = [mutant for mutant in MUTANTS if all(word in mutant.name for word in sys.argv[1:])]
    survivors = [mutant.name for mutant in wanted if not is_noticed(mutant)]
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} mutants were noticed")
    for name in survivors:
        print(f"NOT NOTICED: {name}")
    return len(survivors)


def is_noticed(mutant: Mutant) -> bool:
    """Whether the tests fail on it, and not because they could not be run."""
    began = time.monotonic()
    with TemporaryDirectory(prefix="ordernumbers-mutant-") as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for part in PARTS:
            source = ROOT / part
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / part)
        file = copy / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(f"{mutant.name}: {mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
        file.write_text(text.replace(mutant.old, mutant.new))
        Path(folder).chmod(0o711)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": f"{copy}:{copy / 'gen'}"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
    noticed = done.returncode == 1 and bool(failed)
    by = failed[0].split(" - ")[0].split("::")[-1] if noticed else f"nobody (pytest said {done.returncode})"
    print(f"{mutant.name}: noticed by {by}, {time.monotonic() - began:.0f} s", flush=True)
    return noticed


if __name__ == "__main__":
    sys.exit(main())
