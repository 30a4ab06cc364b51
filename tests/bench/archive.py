"""`python -m tests.bench.archive`: how fast an archive is, what it frees, and what it costs the orders beside it."""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import psycopg
from rich.console import Console

from server.store.archive import INDEXES
from tests.bench.clients import grpc_clients
from tests.bench.database import BenchDatabase
from tests.bench.measures import Effort, Measure
from tests.bench.parts import OURS, running_postgres, running_service, work_folder
from tests.bench.sides import IN_FLIGHT, Bench
from tests.support.old_orders import NUMBERS_EACH, add_old_orders
from tests.support.stack import wait_until

TABLES = ("orders", "assignment", "ledger_entry", "number_event")
NOW = datetime.now(UTC)
SINCE, UNTIL = NOW - timedelta(days=700), NOW - timedelta(days=95)
"""When the old orders were made."""
NUMBERS = 400_000
"""For new orders."""

# The command with other pauses: those before and those after the indexes for orders are built. It takes no step while
# the file `hold` exists.
ARCHIVE = """
import os, sys, time
from server import cli
from server.store import archive

before_build, after_build, hold, *arguments = sys.argv[1:]
sleep, build = time.sleep, archive._build_indexes

def sleep_and_hold(seconds):
    sleep(seconds)
    while os.path.exists(hold):
        sleep(0.02)

def build_and_pause(connection):
    build(connection)
    archive.PAUSE_PER_STEP = float(after_build)

archive.time.sleep, archive._build_indexes = sleep_and_hold, build_and_pause
archive.PAUSE_PER_STEP = float(before_build)
sys.argv = ["ordernumbers", "archive", *arguments, "--json"]
cli.main()
"""
PAUSE = 4.0
"""That of the command."""
SHARE_MIN = 0.5 / NUMBERS_EACH
"""A number is given back after half the time between its orders. With a smaller share no order could go."""

console = Console(width=None if sys.stdout.isatty() else 150)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.archive", description=__doc__)
    parser.add_argument("--orders", type=int, default=5_000_000, help="old orders in the database (default 5 million)")
    parser.add_argument("--share", type=float, default=0.1, help="how much of their time is archived (default 0.1)")
    parser.add_argument("--rounds", type=int, default=5, help="how often orders are measured in each phase (default 5)")
    arguments = parser.parse_args()
    if not SHARE_MIN < arguments.share <= 1:
        parser.error(f"--share must be above {SHARE_MIN} and at most 1")
    effort = Effort(quick=False, rounds=arguments.rounds, seconds=3, warm_seconds=1.2, workers=2)
    with work_folder() as folder, running_postgres(folder) as postgres, ExitStack() as stack:
        bench = Bench(postgres, folder, effort, stack)
        run(bench, bench.open_database("archive", block_numbers=NUMBERS), arguments.orders, arguments.share)


def run(bench: Bench, database: BenchDatabase, orders: int, share: float) -> None:
    with _timed(f"adding {orders:,} old orders"):
        add_old_orders(database.engine, orders, SINCE, UNTIL)
    with _timed("VACUUM"):
        _rows(database, "VACUUM (ANALYZE)")
    _print_sizes(database)
    console.print(f"{_bytes(database) / orders:,.0f} bytes per order")
    archive = Archive(bench, database, (SINCE + share * (UNTIL - SINCE)).date().isoformat())
    with _timed("--dry-run"):
        console.print(archive.finish("--dry-run"))
    service = bench.stack.enter_context(running_service(bench.folder / "service", database.url, bench.effort.workers))

    def sell() -> Measure:
        clients = grpc_clients(service.workers, database.customers, IN_FLIGHT[-1])
        return bench.sell(database, "grpc", clients, IN_FLIGHT[-1], bench.parts(service))

    sell()  # opens connections
    with archive.running(PAUSE, PAUSE):
        compare("ledger entries", archive, sell, bench.effort.rounds)
    with _timed("the other ledger entries, without pauses"), archive.running(0, PAUSE):
        before = archive.rows()
        started = time.monotonic()
        wait_until(lambda: archive.indexes("true") > 0, seconds_max=3600)
        console.print(f"{(archive.rows() - before) / (time.monotonic() - started):,.0f} rows/s")
        started = time.monotonic()
        while archive.indexes("indisvalid") < len(INDEXES):
            console.print(f"while the indexes are built: {_line(sell())}")
        console.print(f"the build took about {time.monotonic() - started:.0f} s")
        _print_sizes(database, "archive_%")
        compare("orders", archive, sell, bench.effort.rounds)
    with _timed("all other rows, without pauses"):
        before, started = archive.rows(), time.monotonic()
        console.print(archive.finish("--to", str(bench.folder / "rest.gz")))
        console.print(f"{(archive.rows() - before) / (time.monotonic() - started):,.0f} rows/s with the build")
    files = sum(path.stat().st_size for path in bench.folder.glob("*.gz"))
    console.print(f"{archive.rows():,} rows in files of {files / 2**20:,.0f} MiB")
    with _timed("check"):
        console.print(f"violations: {bench.violations()}")
    _print_sizes(database)
    with _timed("VACUUM"):
        _rows(database, "VACUUM (ANALYZE)")
    _print_sizes(database)
    made, size = database.orders_made(), _bytes(database)
    for _ in range(2 * bench.effort.rounds):
        console.print(f"after it: {_line(sell())}")
    made, size = database.orders_made() - made, _bytes(database) - size
    console.print(f"{made:,} new orders, {size / made:,.0f} bytes more each")
    _print_sizes(database)


def compare(what: str, archive: "Archive", sell: Callable[[], Measure], rounds: int) -> None:
    """Measure orders in turn with the archive held, and beside it."""
    alone: list[Measure] = []
    beside: list[Measure] = []
    moved = seconds = quiet = since = 0.0
    for _ in range(rounds):
        archive.hold.touch()
        time.sleep(0.5)
        alone.append(sell())
        archive.hold.unlink()
        before, started = archive.rows(), time.monotonic()
        beside.append(sell())
        moved, seconds = moved + archive.rows() - before, seconds + time.monotonic() - started
        console.print(f"{what}: held {_line(alone[-1])}   beside {_line(beside[-1])}")
        time.sleep(1)  # until PostgreSQL has counted
        quiet, since = quiet - archive.rows(), since - time.monotonic()
        time.sleep(3)
        quiet, since = quiet + archive.rows(), since + time.monotonic()
    ratio = median(b.orders_per_second / a.orders_per_second for a, b in zip(alone, beside, strict=True))
    console.print(f"{what}: median of beside / held {ratio:.3f}, moved {moved / seconds:,.0f} rows/s")
    console.print(f"{what}: without orders {quiet / since:,.0f} rows/s")
    for name, measures in (("held", alone), ("beside", beside)):
        p50, p99 = (median(getattr(each, ms) for each in measures) for ms in ("p50_ms", "p99_ms"))
        orders = median(each.orders_per_second for each in measures)
        console.print(f"{what}: medians {name}: {orders:,.0f} orders/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")


class Archive:
    """The command on a database."""

    def __init__(self, bench: Bench, database: BenchDatabase, before: str) -> None:
        self.hold = bench.folder / "hold"
        self._bench = bench
        self._database = database
        self._before = before
        self._files = 0

    @contextmanager
    def running(self, before_build: float, after_build: float) -> Iterator[None]:
        """The command with these pauses. It is interrupted at the end."""
        self._files += 1
        file = self._bench.folder / f"{self._files}.gz"
        process = self._start(before_build, after_build, "--to", str(file))
        try:
            yield
        finally:
            self.hold.unlink(missing_ok=True)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=300)
            if process.returncode != 130:
                console.print(f"it ended with {process.returncode}: {out} {err}")

    def finish(self, *options: str) -> Any:
        """Run the command to its end without pauses."""
        out, err = self._start(0, 0, *options).communicate()
        return json.loads(out)["rows"] if out else err

    def _start(self, before_build: float, after_build: float, *options: str) -> "subprocess.Popen[str]":
        arguments = [str(before_build), str(after_build), str(self.hold), "--before", self._before, *options]
        return subprocess.Popen(
            [sys.executable, "-c", ARCHIVE, *arguments],
            env=OURS.environment(database_url=self._database.url),
            cwd=OURS.root,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def rows(self) -> int:
        """How many rows were moved so far."""
        deleted = "SELECT sum(n_tup_del) FROM pg_stat_user_tables WHERE relname = ANY(%s)"
        return int(_rows(self._database, deleted, [list(TABLES)])[0][0])

    def indexes(self, condition: str) -> int:
        """How many of the indexes for orders fulfil it."""
        named = "SELECT count(*) FROM pg_index JOIN pg_class ON oid = indexrelid WHERE relname = ANY(%s)"
        query = f"{named} AND {condition}"
        return int(_rows(self._database, query, [[name for name, _ in INDEXES]])[0][0])


def _line(measure: Measure) -> str:
    times = f"p50 {measure.p50_ms:5.1f}  p99 {measure.p99_ms:6.1f} ms"
    return f"{measure.orders_per_second:6,.0f} orders/s  {times}  others {measure.others_cores:.1f}"


def _bytes(database: BenchDatabase) -> int:
    sizes = "SELECT sum(pg_total_relation_size(name::regclass))::bigint FROM unnest(%s::text[]) AS name"
    return int(_rows(database, sizes, [list(TABLES)])[0][0])


def _print_sizes(database: BenchDatabase, indexes: str = "") -> None:
    sizes = """
        SELECT relname::text, pg_table_size(oid), pg_indexes_size(oid) FROM pg_class
        WHERE relname = ANY(%s) OR relname LIKE %s
        ORDER BY relname
    """
    for name, table, its_indexes in _rows(database, sizes, [list(TABLES), indexes]):
        console.print(f"{name:28} {table / 2**20:8,.0f} MiB, its indexes {its_indexes / 2**20:8,.0f} MiB")


def _rows(database: BenchDatabase, sql: str, parameters: Any = None) -> list[Any]:
    with psycopg.connect(database.url, autocommit=True) as connection:
        cursor = connection.execute(sql, parameters)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


@contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    console.print(f"{what}: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
