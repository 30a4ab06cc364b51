"""A load and its result: what the generator sends, and what came of it."""

import re
from array import array
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Client:
    """A connection. It keeps `in_flight` orders under way, and uses the keys in turn."""

    group: str
    address: tuple[str, int]
    in_flight: int
    keys: list[str]


@dataclass(frozen=True)
class Load:
    """`orders` has the numbers of every order, for each group of clients. The load ends when a group has no more."""

    transport: str
    clients: list[Client]
    orders: dict[str, list[list[str]]]
    warm_seconds: float
    seconds: float


@dataclass(frozen=True)
class GroupResult:
    """Orders with a response in the measured time, and their latencies. `taken` and `…_in_all` are of the whole run."""

    succeeded: int
    refused: int
    p50_ms: float
    p99_ms: float
    taken: int
    succeeded_in_all: int
    refused_in_all: int
    sample: str
    """The first refusal."""


@dataclass(frozen=True)
class Result:
    """The result of a load. `seconds` is how long it was really measured."""

    seconds: float
    generator_cpu_seconds: float
    groups: dict[str, GroupResult]


# ---------------------------------------------------------------- counting


class Group:
    """Clients that share their orders and are counted together."""

    def __init__(self, bodies: list[bytes]) -> None:
        self._bodies = iter(bodies)
        self.body_bytes_max = max(map(len, bodies), default=0)
        self.taken = 0
        self.exhausted = self.stopped = False
        self.tally = Tally()
        self.tallies = [self.tally]

    def next_body(self) -> bytes | None:
        """The body of the next order, or None after the last one."""
        if self.stopped:
            return None
        body = next(self._bodies, None)
        if body is None:
            self.exhausted = True
        else:
            self.taken += 1
        return body

    def new_tally(self) -> None:
        self.tally = Tally()
        self.tallies.append(self.tally)

    def result(self) -> GroupResult:
        # Before, during and after the measured time.
        _, measured, _ = self.tallies
        latencies = sorted(measured.latencies_ns)
        return GroupResult(
            succeeded=measured.succeeded,
            refused=measured.refused,
            p50_ms=_quantile_ms(latencies, 0.50),
            p99_ms=_quantile_ms(latencies, 0.99),
            taken=self.taken,
            succeeded_in_all=sum(tally.succeeded for tally in self.tallies),
            refused_in_all=sum(tally.refused for tally in self.tallies),
            sample=next((tally.sample for tally in self.tallies if tally.sample), ""),
        )


@dataclass(slots=True)
class Tally:
    """Responses in one period of time."""

    succeeded: int = 0
    refused: int = 0
    # An array takes 8 bytes per latency, a list of integers four times as much.
    latencies_ns: "array[int]" = field(default_factory=lambda: array("q"))
    sample: str = ""

    def add(self, latency_ns: int, succeeded: bool, response: bytes = b"") -> None:
        self.latencies_ns.append(latency_ns)
        if succeeded:
            self.succeeded += 1
            return
        self.refused += 1
        self.sample = self.sample or re.sub(rb"[^ -~]+", b" ", response).decode()


def _quantile_ms(ordered_ns: list[int], quantile: float) -> float:
    return ordered_ns[int(quantile * (len(ordered_ns) - 1))] / 1e6 if ordered_ns else 0.0
