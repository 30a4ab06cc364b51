"""What the size of the inventory changes: bytes, imports, orders and searches, at 10 and at 30 million numbers.

It takes most of an hour and 20 GB of disk. So it is no part of a run of all parts.
"""

import random
import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg

from tests.bench.clients import grpc_clients
from tests.bench.database import BenchDatabase
from tests.bench.measures import Measure, Side
from tests.bench.parts import OURS, RunningService, cpu_seconds, running_service, tree
from tests.bench.read_calls import AREA_CODES, AREA_SIZE, AREA_STEP, Caller, add_areas
from tests.bench.reads import measure_read, searches
from tests.bench.sides import IN_FLIGHT, Bench

SIZES = {"10M": 10_000_000, "30M": 30_000_000}
IMPORTED = 1_000_000
"""How many numbers of each size `ordernumbers inventory import` adds, as the last ones. SQL adds the others."""
ORDERED_MAX = 400_000
"""More numbers than can be ordered in all rounds of a size."""
MAINTENANCE_MEMORY = "1GB"  # to build the indexes. With PostgreSQL's default it takes several times as long

Figures = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """An inventory of one size: what it takes, and the sides that are measured in it."""

    name: str
    figures: Figures
    sides: list[Side]


def sizes(bench: Bench, numbers: Mapping[str, int] = SIZES, imported: int = IMPORTED) -> Iterator[Size]:
    """Let one inventory grow to each size. The server of a size runs until the next size is asked for."""
    database = bench.open_database("sizes", block_numbers=1)
    _rows(database, f"ALTER DATABASE sizes SET maintenance_work_mem = '{MAINTENANCE_MEMORY}'")
    done = 0
    for name, count in numbers.items():
        by_sql, in_all = (count - imported) // len(AREA_CODES), count // len(AREA_CODES)
        add_areas(database, range(done, by_sql))
        figures = _import(bench, database, range(by_sql, in_all)) | _bytes_per_number(database)
        done = in_all
        available = _some_available(database, count)
        with running_service(bench.folder / f"size-{name}", database.url, bench.effort.workers) as service:
            yield Size(name, figures, list(_sides(bench, database, service, name, available, figures)))


def _sides(
    bench: Bench, database: BenchDatabase, service: RunningService, name: str, available: list[str], figures: Figures
) -> Iterator[Side]:
    yield Side(f"size {name} orders", lambda: _sell(bench, database, service, available, figures))
    customer = database.customers[0]
    worker = service.workers[customer.worker_index(len(service.workers))]
    caller = bench.stack.enter_context(closing(Caller(worker, customer)))
    for what, call in searches(caller).items():
        yield Side(f"size {name} {what}", lambda call=call: measure_read(bench, service, caller, call))


# ---------------------------------------------------------------- import


def _import(bench: Bench, database: BenchDatabase, indexes: range) -> Figures:
    """Import the numbers with these indexes of each area code, as an operator does. Return its speed and CPU."""
    file = bench.folder / "numbers.csv"
    lines = _write_csv(file, indexes)
    database.checkpoint()
    started, before = monotonic(), _cpu_seconds(bench)
    command = OURS.command("inventory", "import", str(file))
    environment = OURS.environment(database_url=database.url)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds, after = monotonic() - started, _cpu_seconds(bench)
    _rows(database, "VACUUM (ANALYZE) phone_number")  # otherwise PostgreSQL would do it while orders are measured
    database.checkpoint()
    return {
        "import_lines": lines,
        "import_lines_per_second": round(lines / seconds),
        "import_cpu_us_per_line": {part: round((after[part] - before[part]) * 1e6 / lines, 1) for part in after},
    }


def _write_csv(file: Path, indexes: range) -> int:
    """Write a line per number. Return how many."""
    with file.open("w") as out:
        out.write("number,number_type,sms_enabled,mms_enabled,price\n")
        for area_code in AREA_CODES:
            digits = (i * AREA_STEP % AREA_SIZE for i in indexes)
            out.writelines(f"+1{area_code}{each:07},local,true,false,1.00\n" for each in digits)
    return len(AREA_CODES) * len(indexes)


def _cpu_seconds(bench: Bench) -> dict[str, float]:
    """Of commands that have ended, and of PostgreSQL."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Not a Meter: it knows only the processes of its start, and the import's connection has one of its own.
    return {"import": ended.ru_utime + ended.ru_stime, "postgres": sum(map(cpu_seconds, tree(bench.postgres.process)))}


# ---------------------------------------------------------------- what the database says


def _bytes_per_number(database: BenchDatabase) -> Figures:
    """How many numbers there are, and the bytes on disk per number, of the table and of each index."""
    ((count,),) = _rows(database, "SELECT count(*) FROM phone_number")
    relations = _rows(database, RELATIONS)
    return {"numbers": count, "bytes_per_number": {name: round(size / count, 1) for name, size in relations}}


def _some_available(database: BenchDatabase, count: int) -> list[str]:
    """Available numbers from all over the inventory, in random order."""
    # About a half of the numbers is not available.
    percent = min(100.0, 100 * 2 * ORDERED_MAX / count)
    numbers = [number for (number,) in _rows(database, SOME_AVAILABLE, [percent])]
    random.Random(1).shuffle(numbers)
    return numbers


def _rows(database: BenchDatabase, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.url, autocommit=True) as connection:
        cursor = connection.execute(sql, parameters)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


RELATIONS = """
    SELECT relname, pg_table_size(oid)
    FROM pg_class
    WHERE oid = 'phone_number'::regclass
      OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'phone_number'::regclass)
    ORDER BY relname
"""
SOME_AVAILABLE = """
    SELECT number
    FROM phone_number TABLESAMPLE BERNOULLI (%s)
    WHERE assignment_id IS NULL AND free_at IS NULL
"""
WAL = "SELECT wal_bytes, wal_fpi FROM pg_stat_wal"


# ---------------------------------------------------------------- orders


def _sell(
    bench: Bench, database: BenchDatabase, service: RunningService, available: list[str], figures: Figures
) -> Measure:
    """Measure orders of one number each. Adds the WAL of an order to `figures`: its bytes, and how many full pages."""
    orders = [[number] for number in available[: bench.orders_max(IN_FLIGHT[-1], 1)]]
    clients = grpc_clients(service.workers, database.customers, IN_FLIGHT[-1])
    before = _rows(database, WAL)[0]
    result, measure = bench.run_and_count(database, "grpc", clients, {"all": orders}, bench.parts(service))
    ordered = result.groups["all"].taken
    del available[:ordered]
    for name, now, then in zip(("bytes", "full_pages"), _rows(database, WAL)[0], before, strict=True):
        figures.setdefault(f"wal_{name}_per_order", []).append(round(float(now - then) / ordered, 1))
    return measure
