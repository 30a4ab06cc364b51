"""What a worker counts. server/run/metrics_page.py shows it to Prometheus, and docs/metrics.md explains it.

These are plain numbers. Only the event loop changes them, and at a scrape the page, which sets the gauges. To count
costs about 0.1 µs. The counters of prometheus_client take a lock each time, and its histograms take 2 µs.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The buckets of durations. A call takes at most 30 seconds by default."""
ORDERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
"""The buckets of batches."""


class Number:
    """A counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """Counts observations by size."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Family(dict[tuple[str, ...], T], Generic[T]):
    """A metric: one number or histogram for each combination of the labels' values. Each is made when first used."""

    def __init__(
        self, kind: str, name: str, meaning: str, new: Callable[[], T], *, labels: Sequence[str], known: Iterable[str]
    ) -> None:
        """`known` are values of the only label. They are there from the start, because `rate()` needs the zero."""
        super().__init__()
        self.kind, self.name, self.meaning, self.labels, self._new = kind, name, meaning, labels, new
        if not labels:
            self[()] = new()
        for value in known:
            self[value,] = new()

    def __missing__(self, values: tuple[str, ...]) -> T:
        self[values] = child = self._new()
        return child


FAMILIES: list[Family[Number] | Family[Histogram]] = []
"""All metrics of a worker, in the order of the page."""


def _numbers(kind: str, name: str, meaning: str, labels: Sequence[str], known: Iterable[str]) -> Family[Number]:
    family = Family(kind, name, meaning, Number, labels=labels, known=known)
    FAMILIES.append(family)
    return family


def _counter(name: str, meaning: str, labels: Sequence[str] = (), known: Iterable[str] = ()) -> Family[Number]:
    return _numbers("counter", f"ordernumbers_{name}_total", meaning, labels, known)


def _gauge(name: str, meaning: str, labels: Sequence[str] = (), known: Iterable[str] = ()) -> Family[Number]:
    return _numbers("gauge", f"ordernumbers_{name}", meaning, labels, known)


def _histogram(
    name: str, meaning: str, bounds: Sequence[float], labels: Sequence[str] = (), known: Iterable[str] = ()
) -> Family[Histogram]:
    family = Family("histogram", f"ordernumbers_{name}", meaning, lambda: Histogram(bounds), labels=labels, known=known)
    FAMILIES.append(family)
    return family


# ---------------------------------------------------------------- calls

CALLS = _counter("calls", "Calls that have ended.", ("method", "code"))
FAILURES = ("INTERNAL", "UNAVAILABLE", "TIMEOUT")
"""The codes of calls that failed. deploy/prometheus/rules.yml has the same."""
CALL_SECONDS = _histogram("call_duration_seconds", "How long calls took in the worker.", SECONDS, ("method",))
KEYS = _counter(
    "key_lookups", "How API keys were found.", ("result",), ("cached", "found", "unknown", "failed", "refused")
)

# ---------------------------------------------------------------- writes

KINDS = ("orders", "writes", "reads")
IN_PROGRESS = _gauge("in_progress", "Calls of a kind that wait or run.", ("kind",), KINDS)
IN_PROGRESS_MAX = _gauge("in_progress_max", "At so many, more are refused.", ("kind",), KINDS)

QUEUES = ("orders", "retries", "writes")
QUEUE_LENGTH = _gauge("queue_length", "Writes that wait for a database connection.", ("queue",), QUEUES)
QUEUE_SECONDS = _histogram("queue_wait_seconds", "How long writes waited for one.", SECONDS, ("queue",), QUEUES)
BATCH_ORDERS = _histogram("batch_orders", "Orders in a batch.", ORDERS)[()]

ROUND_TRIP_SECONDS = _histogram(
    "round_trip_seconds",
    "How long the round trips of transactions took.",
    SECONDS,
    ("round_trip",),
    ("read", "commit"),
)
READ_SECONDS, COMMIT_SECONDS = ROUND_TRIP_SECONDS["read",], ROUND_TRIP_SECONDS["commit",]

ORDERS_PLACED = _counter("orders_placed", "Orders that were placed.")[()]
NUMBERS_SOLD = _counter("numbers_sold", "Numbers that were sold by these orders.")[()]
RETRIES = _counter("retries", "Writes that had to be tried again.", ("queue",), QUEUES)
LOCK_SKIPS = _counter("lock_skips", "Orders that a batch left out because another transaction had locked a row.")[()]
FAILED_ATTEMPTS = _counter(
    "failed_attempts",
    "Transactions of writes that failed.",
    ("reason",),
    ("conflict", "locked", "timeout", "unknown", "connection", "other"),
)
UNKNOWN_OUTCOMES = _counter(
    "unknown_outcomes",
    "Writes with an unknown outcome, by how it ended.",
    ("end",),
    ("carried_out", "decided_again", "never_known"),
)
UNSETTLED_COMMITS = _gauge("unsettled_commits", "COMMITs that may still run in the database.")[()]

# ---------------------------------------------------------------- the worker

PURGES = _counter("purges", "Purges of old idempotency keys.", ("result",), ("ok", "failed"))
PURGED = _counter("purged_responses", "Stored responses that were purged.")[()]
DATABASE_UP = _gauge("database_up", "1 if the last health check could have carried out an order.")[()]
CERTIFICATE_END = _gauge("certificate_end_timestamp_seconds", "When the certificate ends. 0 without TLS.")[()]


before_scrape: list[Callable[[], None]] = []
"""Called when the page is asked for, in the page's thread. They set what others count, and read only plain values."""


def show_failures(method: str) -> None:
    """Have a zero for each failure of this method from the start, because `rate()` needs it."""
    for code in FAILURES:
        CALLS[method, code].value += 0


def count_calls(ended: Sequence[tuple[str, str, float]]) -> None:
    """Count calls that have ended: the full names of their methods, their codes, and their seconds."""
    for (method, code), count in Counter((method, code) for method, code, _ in ended).items():
        CALLS[_short(method), code].value += count
    for method, _, seconds in ended:
        CALL_SECONDS[_short(method),].observe(seconds)


@cache
def _short(method: str) -> str:
    return method.rpartition(".")[2]
