"""What is measured: the figures of a side in one round, and how they are made from a result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from tests.bench.floor import FloorResult
from tests.bench.load import GroupResult, Result
from tests.bench.parts import Meter
from tests.bench.read_calls import Latencies

GENERATOR = "generator"
AGAINST = " against"
"""The end of the names of the other commit's sides."""

Orders = Mapping[str, list[list[str]]]
"""The numbers of every order, per group of clients."""
Parts = Mapping[str, list[psutil.Process]]
"""The processes whose CPU is measured, per name."""


@dataclass(frozen=True)
class Effort:
    """How much is measured. The quick form skips sides that are rarely the fastest."""

    quick: bool
    rounds: int
    seconds: float
    warm_seconds: float
    workers: int


@dataclass(frozen=True)
class Measure:
    """One side in one round. `cpu_us` has the CPU microseconds per order of each part, also of the generator."""

    orders_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: Mapping[str, float]
    others_cores: float
    """How many cores other processes used. With a high value the result means little."""
    numbers_per_order: int = 1
    orders_per_batch: float | None = None
    """How many orders shared a transaction on average. None if it was not counted."""

    @property
    def orders_per_cpu_second(self) -> float:
        """Orders per CPU-second of all parts but the generator."""
        spent_us = sum(each for name, each in self.cpu_us.items() if name != GENERATOR)
        return 1e6 / spent_us if spent_us else 0.0


@dataclass(frozen=True)
class Side:
    """A name, and a function that measures it once."""

    name: str
    measure: Callable[[], Measure]


# ---------------------------------------------------------------- results


def require_all_sold(result: Result, made: int) -> None:
    groups = result.groups.values()
    succeeded = sum(group.succeeded_in_all for group in groups)
    if refused := sum(group.refused_in_all for group in groups):
        raise RuntimeError(f"{refused} orders were refused: {[group.sample for group in groups]}")
    if succeeded != made:
        raise RuntimeError(f"{succeeded} orders succeeded, {made} are in the database")


def measure_load(result: Result, latencies: GroupResult, meter: Meter) -> Measure:
    """Throughput and CPU of all responses, also of refusals. Latencies of one group."""
    responses = sum(group.succeeded + group.refused for group in result.groups.values())
    meter.cores[GENERATOR] = result.generator_cpu_seconds / result.seconds
    return measure_of(responses, result.seconds, latencies, meter)


def measure_of(orders: int, seconds: float, latencies: GroupResult | FloorResult | Latencies, meter: Meter) -> Measure:
    if not orders:
        raise RuntimeError("no order had a response in the measured time")
    cpu_us = {name: cores * seconds * 1e6 / orders for name, cores in meter.cores.items()}
    others = (psutil.cpu_count() or 1) - meter.idle_cores - sum(meter.cores.values())
    return Measure(orders / seconds, latencies.p50_ms, latencies.p99_ms, cpu_us, max(0.0, others))
