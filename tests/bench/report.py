"""The result of a benchmark: medians over the rounds, ratios and their goals, as tables and as JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.sides import GENERATOR, Measure

Sides = Mapping[str, Measure]
Rounds = Mapping[str, Sequence[Measure]]
Goal = tuple[str, float]
"""">=" or "<=", and the value."""


def medians(measures: Rounds) -> dict[str, Measure]:
    """The median of each figure."""
    return {name: _median(each) for name, each in measures.items()}


def _median(rounds: Sequence[Measure]) -> Measure:
    def of(figure: Callable[[Measure], float]) -> float:
        return median(map(figure, rounds))

    batches = [m.orders_per_batch for m in rounds if m.orders_per_batch]
    return Measure(
        orders_per_second=of(lambda m: m.orders_per_second),
        p50_ms=of(lambda m: m.p50_ms),
        p99_ms=of(lambda m: m.p99_ms),
        cpu_us={name: of(lambda m, name=name: m.cpu_us[name]) for name in rounds[0].cpu_us},  # type: ignore[misc]
        others_cores=of(lambda m: m.others_cores),
        numbers_per_order=rounds[0].numbers_per_order,
        orders_per_batch=median(batches) if batches else None,
    )


# ---------------------------------------------------------------- ratios


@dataclass(frozen=True)
class Ratio:
    """The throughput of the side `of`, divided by that of `to`.

    A name that ends in `*` means the fastest side whose name starts like that.
    """

    name: str
    of: str
    to: str
    goal: float


THROUGHPUT_RATIOS = (
    Ratio("grpc_vs_pgbench", "grpc many 128", "floor many *", 1.0),
    Ratio("hot_org_vs_pgbench", "grpc hot 128", "floor hot *", 3.0),
    Ratio("grpc_vs_null", "grpc many 128", "null many 128", 0.7),
    Ratio("rest_vs_grpc", "rest many 128", "grpc many 128", 0.8),
    Ratio("wide_numbers_vs_single", "wide 100", "wide 1", 3.0),
    Ratio("growth_10m_vs_100k", "growth 10M", "growth 100k", 0.9),
    Ratio("goodput_at_10x", "overload 10x", "overload *", 0.8),
    Ratio("goodput_at_40x", "overload 40x", "overload *", 0.8),
    Ratio("two_workers_vs_one", "workers 2", "workers 1", 1.3),
)
ORDER = (
    "grpc_vs_pgbench",
    "hot_org_vs_pgbench",
    "grpc_vs_null",
    "rest_vs_grpc",
    "latency_vs_pgbench",
    "wide_numbers_vs_single",
    "growth_10m_vs_100k",
    "worker_rss_mb",
    "two_workers_vs_one",
    "goodput_at_10x",
    "goodput_at_40x",
)
GOALS: dict[str, Goal] = {
    **{ratio.name: (">=", ratio.goal) for ratio in THROUGHPUT_RATIOS},
    "latency_vs_pgbench": ("<=", 2.0),
    "worker_rss_mb": ("<=", 150),
}


def ratios(sides: Sides, worker_rss_mb: float) -> dict[str, float]:
    """The ratios of the measured sides, in the order of the goals.

    `…_cpu` is the ratio of orders (or numbers) per CPU-second. The generator's CPU does not count.
    """
    found = {} if not worker_rss_mb else {"worker_rss_mb": round(worker_rss_mb, 1)}
    for ratio in THROUGHPUT_RATIOS:
        of, to = _side(sides, ratio.of), _side(sides, ratio.to)
        if of and to:
            numbers = of.numbers_per_order / to.numbers_per_order
            found[ratio.name] = round(numbers * of.orders_per_second / to.orders_per_second, 3)
            found[f"{ratio.name}_cpu"] = round(numbers * of.orders_per_cpu_second / to.orders_per_cpu_second, 3)
    one, floor = sides.get("grpc many 1"), sides.get("floor many 1")
    if one and floor:
        found["latency_vs_pgbench"] = round(one.p50_ms / floor.p50_ms, 3)
    return {name: found[name] for each in ORDER for name in (each, f"{each}_cpu") if name in found}


def _side(sides: Sides, name: str) -> Measure | None:
    if not name.endswith("*"):
        return sides.get(name)
    candidates = [measure for each, measure in sides.items() if each.startswith(name[:-1])]
    return max(candidates, key=lambda measure: measure.orders_per_second, default=None)


def fairness(sides: Sides) -> dict[str, float]:
    """p99 of an organization with 8 orders in flight: alone, and beside 120 of another."""
    if "fairness flooded" not in sides or "fairness alone" not in sides:
        return {}
    alone, flooded = sides["fairness alone"].p99_ms, sides["fairness flooded"].p99_ms
    return {
        "fairness_p99": round(flooded / alone, 2),
        "alone_p99_ms": round(alone, 2),
        "flooded_p99_ms": round(flooded, 2),
    }


# ---------------------------------------------------------------- JSON and tables


def as_json(measure: Measure, rounds: Sequence[Measure]) -> dict[str, Any]:
    """One side: its medians, and the throughput of each round."""
    return {
        "orders_per_second": round(measure.orders_per_second),
        "orders_per_second_of_rounds": [round(each.orders_per_second) for each in rounds],
        "numbers_per_second": round(measure.orders_per_second * measure.numbers_per_order),
        "p50_ms": round(measure.p50_ms, 3),
        "p99_ms": round(measure.p99_ms, 3),
        "orders_per_cpu_second": round(measure.orders_per_cpu_second),
        "cpu_us_per_order": {name: round(each, 1) for name, each in measure.cpu_us.items()},
        "orders_per_batch": measure.orders_per_batch and round(measure.orders_per_batch, 1),
        "others_cores": round(measure.others_cores, 2),
    }


def print_tables(console: Console, sides: Sides, rounds: Rounds, found: Mapping[str, float]) -> None:
    """Print the sides, then the ratios and their goals."""
    console.print(_table_of_sides(sides, rounds), _table_of_ratios(found), sep="\n")


def _table_of_sides(sides: Sides, rounds: Rounds) -> Table:
    table = Table(
        title="Medians. batch: orders per transaction. CPU: microseconds per order. others: cores of other processes"
    )
    spenders = ("server", "envoy", "postgres", GENERATOR)
    table.add_column("side", no_wrap=True)
    for heading in (
        "orders/s",
        "of rounds",
        "numbers/s",
        "batch",
        "p50 ms",
        "p99 ms",
        *spenders,
        "orders/CPU-s",
        "others",
    ):
        table.add_column(heading, justify="right")
    for name, measure in sides.items():
        cpu = [f"{measure.cpu_us[part]:.0f}" if part in measure.cpu_us else "" for part in spenders]
        all_rounds = [each.orders_per_second for each in rounds[name]]
        numbers_per_second = measure.orders_per_second * measure.numbers_per_order
        rates = [
            f"{measure.orders_per_second:,.0f}",
            f"{min(all_rounds):,.0f}–{max(all_rounds):,.0f}",
            f"{numbers_per_second:,.0f}",
            f"{measure.orders_per_batch:.0f}" if measure.orders_per_batch else "",
        ]
        latencies = [f"{measure.p50_ms:.2f}", f"{measure.p99_ms:.2f}"]
        table.add_row(
            name, *rates, *latencies, *cpu, f"{measure.orders_per_cpu_second:,.0f}", f"{measure.others_cores:.1f}"
        )
    return table


def _table_of_ratios(found: Mapping[str, float]) -> Table:
    table = Table("ratio", "goal", title="Ratios")
    table.add_column("measured", justify="right")
    table.add_column("per CPU-second", justify="right")
    for name, (sense, goal) in ((name, GOALS[name]) for name in ORDER if name in found):
        reached = found[name] >= goal if sense == ">=" else found[name] <= goal
        measured = f"[{'green' if reached else 'red'}]{found[name]:g}"
        per_cpu = found.get(f"{name}_cpu")
        table.add_row(name, f"{sense} {goal:g}", measured, "" if per_cpu is None else f"{per_cpu:g}")
    return table
