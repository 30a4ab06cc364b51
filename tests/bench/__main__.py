"""`make bench`: the speed of orders compared with pgbench. docs/benchmark.md explains the results."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from server.config import settings
from server.errors import OperatorError
from tests.bench import report
from tests.bench.machine import describe
from tests.bench.measures import AGAINST, Effort, Measure, Side
from tests.bench.parts import checkout, running_postgres, work_folder
from tests.bench.reads import read_sides
from tests.bench.sides import AGAINST_PARTS, LONG_PARTS, PARTS, QUICK_PARTS, Bench
from tests.bench.size import Figures, sizes

RESULTS = Path(__file__).parent / "results"
WORKERS_MAX = 4  # the embedded PostgreSQL has connections for so many, and for 64 clients of pgbench
ROUNDS_MIN = 3  # with fewer, a median means little
ALL_PARTS = (*PARTS, *LONG_PARTS)
OTHERS_CORES_FEW = 0.2  # not worth a note

console = Console(width=None if sys.stdout.isatty() else 150)


def main() -> None:
    arguments = _arguments()
    effort = Effort(
        quick=arguments.quick,
        rounds=arguments.rounds or (3 if arguments.quick else 5),
        seconds=arguments.seconds or (1.2 if arguments.quick else 3),
        warm_seconds=0.6 if arguments.quick else 1.2,
        workers=arguments.workers or min(WORKERS_MAX, os.cpu_count() or 1),
    )
    parts = arguments.only or (QUICK_PARTS if effort.quick else PARTS)
    result = run(effort, parts, arguments.against)
    whole = not arguments.against and not effort.quick and set(parts) == set(PARTS) and effort.rounds >= ROUNDS_MIN
    path = RESULTS / ("latest.json" if whole else "quick.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"Written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    if result["violations"]:
        sys.exit(f"Invariants do not hold: {result['violations'][:10]}")


def run(effort: Effort, parts: Sequence[str], against: str | None = None) -> dict[str, Any]:
    """Measure these parts, also of the commit `against`. Print the tables, and return the result for JSON."""
    with work_folder() as folder, running_postgres(folder) as postgres:
        machine = describe(folder, postgres.settings("server_version")["server_version"])
        durable = postgres.settings("fsync", "synchronous_commit")
        if set(durable.values()) != {"on"}:
            raise OperatorError(f"PostgreSQL is not durable: {durable}")
        benches = []
        with ExitStack() as stack:
            bench = Bench(postgres, folder, effort, stack)
            benches.append(bench)
            sides = bench.sides(tuple(parts))
            if against:
                tree = stack.enter_context(checkout(against, folder / "against"))
                benches.append(Bench(postgres, folder, effort, stack, tree, "against"))
                sides = _side_by_side(sides, benches[1].sides(tuple(part for part in parts if part in AGAINST_PARTS)))
            measures = _measure(sides, effort.rounds, bench.note_memory)
            violations = [each for other in benches[1:] for each in other.violations()]
        if "growth" in parts:
            measures |= _measure(list(bench.growth_sides()), effort.rounds)
        with ExitStack() as stack:
            bench.stack = stack
            if "reads" in parts:
                measures |= _measure(list(read_sides(bench)), effort.rounds)
        figures: dict[str, Figures] = {}
        with ExitStack() as stack:
            bench.stack = stack
            if "size" in parts:
                for size in sizes(bench):
                    measures |= _measure(size.sides, effort.rounds)
                    figures[size.name] = size.figures
                    console.print(size.name, size.figures)
        console.print("Checking the invariants…")
        violations += bench.violations()
    medians = report.medians(measures)
    found = report.with_ranges(measures, bench.workers_rss_mb)
    report.print_tables(console, medians, measures, found)
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine | durable,
        "effort": {"rounds": effort.rounds, "seconds": effort.seconds, "workers": effort.workers},
        "order_connections": settings().order_connections,
        "ratios": found,
        "against": against,
        "sizes": figures,
        "sides": {name: report.as_json(measure, measures[name]) for name, measure in medians.items()},
        "violations": violations,
    }


def _side_by_side(sides: list[Side], others: list[Side]) -> list[Side]:
    """Both lists, with each side of the other commit right after ours."""
    by_name = {side.name: Side(f"{side.name}{AGAINST}", side.measure) for side in others}
    return [each for side in sides for each in (side, by_name.get(side.name)) if each]


def _measure(
    sides: list[Side], rounds: int, after_round: Callable[[], None] = lambda: None
) -> dict[str, list[Measure]]:
    """Measure every side once per round."""
    measures: dict[str, list[Measure]] = {side.name: [] for side in sides}
    for number in range(rounds):
        # Each round starts with another side, so that no side always runs first.
        first = number * len(sides) // rounds
        for side in sides[first:] + sides[:first]:
            measure = side.measure()
            measures[side.name].append(measure)
            console.print(f"{number + 1}/{rounds}  {side.name:18} {_line(measure)}", highlight=False, soft_wrap=True)
        after_round()
    return measures


def _line(measure: Measure) -> str:
    cpu = ", ".join(f"{name} {each:.0f}" for name, each in measure.cpu_us.items())
    others = f"  (others: {measure.others_cores:.1f} cores)" if measure.others_cores > OTHERS_CORES_FEW else ""
    latency = f"p50 {measure.p50_ms:7.2f} ms  p99 {measure.p99_ms:7.2f} ms"
    batch = f"batch {measure.orders_per_batch:2.0f}  " if measure.orders_per_batch else ""
    return f"{measure.orders_per_second:8,.0f} orders/s  {latency}  {batch}CPU µs: {cpu}{others}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK_PARTS)}, in less than two minutes")
    parser.add_argument("--only", type=_parts, metavar="PART,…", help=f"only these of {', '.join(ALL_PARTS)}")
    parser.add_argument("--rounds", type=int, help="how often each side is measured (default 5, with --quick 3)")
    parser.add_argument("--seconds", type=float, help="how long each time (default 3, with --quick 1.2)")
    parser.add_argument(
        "--workers", type=int, help=f"workers of the server (default: one per core, at most {WORKERS_MAX})"
    )
    parser.add_argument(
        "--against", metavar="REV", help=f"also measure another commit ({', '.join(AGAINST_PARTS)}), side by side"
    )
    return parser.parse_args()


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(ALL_PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the parts are {', '.join(ALL_PARTS)}")
    return parts


if __name__ == "__main__":
    try:
        main()
    except (OperatorError, RuntimeError, TimeoutError) as error:
        sys.exit(f"bench: {error}")
