"""The result of a benchmark: medians over the rounds, ratios and their goals, as tables and as JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measures import AGAINST, GENERATOR, Measure

Sides = Mapping[str, Measure]
Rounds = Mapping[str, Sequence[Measure]]
Figure = Callable[[Measure], float]
Goal = tuple[str, float]
"""">=" or "<=", and the value."""


def medians(measures: Rounds) -> dict[str, Measure]:
    """The median of each figure."""
    return {name: _median(each) for name, each in measures.items()}


def _median(rounds: Sequence[Measure]) -> Measure:
    def of(figure: Figure) -> float:
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


# ---------------------------------------------------------------- figures and ratios


def numbers_per_second(measure: Measure) -> float:
    return measure.numbers_per_order * measure.orders_per_second


def p50_ms(measure: Measure) -> float:
    return measure.p50_ms


def p99_ms(measure: Measure) -> float:
    return measure.p99_ms


def cpu_us_of(part: str) -> Figure:
    """CPU per order of one part."""
    return lambda measure: measure.cpu_us[part]


@dataclass(frozen=True)
class Ratio:
    """A figure of the side `of`, divided by that of the side `to`.

    A name that ends in `*` means the fastest side of ours whose name starts like that.
    """

    name: str
    of: str
    to: str
    goal: Goal
    figure: Figure = numbers_per_second


RATIOS = (
    Ratio("grpc_vs_pgbench", "grpc many 128", "floor many *", (">=", 1.0)),
    Ratio("server_cpu_vs_idle_batch", "grpc many 128", "idle batch 128", ("<=", 1.5), cpu_us_of("server")),
    Ratio("edge_cpu_vs_bare", "rest many 128", "edge bare 128", ("<=", 1.1), cpu_us_of("envoy")),
    Ratio("rest_vs_peer", "rest many 128", "peer 128", (">=", 10.0)),
    Ratio("hot_org_vs_pgbench", "grpc hot 128", "floor hot *", (">=", 1.5)),
    Ratio("latency_vs_pgbench", "grpc many 1", "floor many 1", ("<=", 3.0), p50_ms),
    Ratio("fairness_p99", "fairness flooded", "fairness alone", ("<=", 3.0), p99_ms),
    Ratio("goodput_at_40x", "overload 40x", "overload *", (">=", 0.8)),
    Ratio("wide_numbers_vs_single", "wide 100", "wide 1", (">=", 8.0)),
    Ratio("growth_10m_vs_100k", "growth 10M", "growth 100k", (">=", 0.95)),
    Ratio("grpc_vs_null", "grpc many 128", "null many 128", (">=", 0.7)),
    Ratio("rest_vs_grpc", "rest many 128", "grpc many 128", (">=", 0.8)),
    Ratio("goodput_at_10x", "overload 10x", "overload *", (">=", 0.8)),
    Ratio("two_workers_vs_one", "workers 2", "workers 1", (">=", 1.3)),
    Ratio("four_workers_vs_one", "workers 4", "workers 1", (">=", 1.0)),
    Ratio("two_hosts_vs_one", "hosts 2", "hosts 1", (">=", 0.9)),
    Ratio("orders_beside_searches", "reads 20/s beside orders", "reads none beside orders", (">=", 0.9)),
)
MEMORY = "worker_rss_mb"
# Milliseconds of a call, the median.
READ_GOALS_MS = {
    "reads area": 5,
    "reads area + 4 digits": 20,
    "reads area + 7 digits": 20,
    "reads 4 digits": 100,
    "reads 7 digits": 100,
    "reads list": 5,
}
GOALS: dict[str, Goal] = {
    **{ratio.name: ratio.goal for ratio in RATIOS},
    MEMORY: ("<=", 150),
    **{f"{side} ms": ("<=", goal) for side, goal in READ_GOALS_MS.items()},
}


def ratios(sides: Sides) -> dict[str, float]:
    """The ratios of the measured sides, and the latencies of reads.

    `…_cpu` beside a ratio of throughputs is that of orders (or numbers) per CPU-second. The generator's CPU does not
    count.
    """
    found = {}
    for ratio in RATIOS:
        of, to = _side(sides, ratio.of), _side(sides, ratio.to)
        if of and to:
            found[ratio.name] = round(ratio.figure(of) / ratio.figure(to), 3)
            if ratio.figure is numbers_per_second:
                found[f"{ratio.name}_cpu"] = round(_numbers_per_cpu_second(of) / _numbers_per_cpu_second(to), 3)
    return found | {f"{side} ms": round(sides[side].p50_ms, 2) for side in READ_GOALS_MS if side in sides}


def with_ranges(rounds: Rounds, workers_rss_mb: Sequence[float]) -> dict[str, Any]:
    """The ratios of the medians. For each also `…_range`: the lowest and the highest of a single round.

    The memory of a worker is the highest. The other commit's sides give `against …`: our throughput divided by theirs
    in the same round, as a median.
    """
    found: dict[str, Any] = ratios(medians(rounds))
    of_rounds = [ratios(sides) for sides in _each_round(rounds)]
    found |= {f"{name}_range": _range([each[name] for each in of_rounds]) for name in found}
    if workers_rss_mb:
        rounded = [round(each, 1) for each in workers_rss_mb]
        found |= {MEMORY: max(rounded), f"{MEMORY}_range": _range(rounded)}
    for name in (name for name in rounds if f"{name}{AGAINST}" in rounds):
        found |= _against(f"against {name}", list(zip(rounds[name], rounds[f"{name}{AGAINST}"], strict=True)))
    return found


def _each_round(rounds: Rounds) -> list[Sides]:
    count = min(map(len, rounds.values()))
    return [{name: measures[i] for name, measures in rounds.items()} for i in range(count)]


def _against(key: str, pairs: Sequence[tuple[Measure, Measure]]) -> dict[str, Any]:
    throughput = [ours.orders_per_second / theirs.orders_per_second for ours, theirs in pairs]
    per_cpu = [ours.orders_per_cpu_second / theirs.orders_per_cpu_second for ours, theirs in pairs]
    return {
        key: round(median(throughput), 3),
        f"{key}_range": _range(throughput),
        f"{key}_cpu": round(median(per_cpu), 3),
        f"{key}_cpu_quartiles": _quartiles(per_cpu),
    }


def _numbers_per_cpu_second(measure: Measure) -> float:
    return measure.numbers_per_order * measure.orders_per_cpu_second


def _quartiles(values: Sequence[float]) -> list[float]:
    """What a quarter and three quarters of the values are below. Of many rounds they say more than the range."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [round(low, 3), round(high, 3)]


def _range(values: Sequence[float]) -> list[float]:
    return [round(min(values), 3), round(max(values), 3)]


def _side(sides: Sides, name: str) -> Measure | None:
    if not name.endswith("*"):
        return sides.get(name)
    ours = (each for each in sides if each.startswith(name[:-1]) and not each.endswith(AGAINST))
    candidates = [sides[each] for each in ours]
    return max(candidates, key=lambda measure: measure.orders_per_second, default=None)


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


def print_tables(console: Console, sides: Sides, rounds: Rounds, found: Mapping[str, Any]) -> None:
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


def _table_of_ratios(found: Mapping[str, Any]) -> Table:
    table = Table("ratio", "goal", title="Ratios")
    table.add_column("measured", justify="right")
    table.add_column("of rounds", justify="right")
    table.add_column("per CPU-second", justify="right")
    for name, (sense, goal) in ((name, goal) for name, goal in GOALS.items() if name in found):
        reached = found[name] >= goal if sense == ">=" else found[name] <= goal
        table.add_row(
            name, f"{sense} {goal:g}", f"[{'green' if reached else 'red'}]{found[name]:g}", *_more(found, name)
        )
    beside = ("_range", "_cpu", "_cpu_quartiles")
    for name in (name for name in found if name.startswith("against ") and not name.endswith(beside)):
        table.add_row(name, "", f"{found[name]:g}", *_more(found, name))
    return table


def _more(found: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The range over the rounds, and the ratio per CPU-second with its quartiles."""
    low_high, per_cpu, quartiles = (found.get(f"{name}_{more}") for more in ("range", "cpu", "cpu_quartiles"))
    return (
        f"{low_high[0]:g}–{low_high[1]:g}" if low_high else "",
        " ".join([f"{per_cpu:g}" if per_cpu else "", f"({quartiles[0]:g}–{quartiles[1]:g})" if quartiles else ""]),
    )
