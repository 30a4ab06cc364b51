"""What is measured: each side of the benchmark, one round of it a call, on parts that already run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import psutil

from tests.bench.floor import FloorResult, run_floor
from tests.bench.generator import Client, GroupResult, Load, Result, run
from tests.bench.market import Buyer, Market
from tests.bench.parts import (
    Address,
    Meter,
    NullServers,
    Postgres,
    Service,
    running_null_servers,
    running_service,
)

CONNECTIONS_PER_WORKER = 4
ORDERS_PER_SECOND_MAX = 25_000
ORDERS_PER_SECOND_MAX_ALONE = 4000  # with one in flight
NUMBERS_PER_SECOND_MAX = 60_000
IN_FLIGHT = (1, 32, 128)
OVERLOAD = (1, 10, 40)
"""Times 128 in flight; with the last the workers' queues are full and most orders are refused."""
FLOOR_CLIENTS = (8, 32, 64)
SCARCE_NUMBERS = 10
GROWTH = {"100k": 100_000, "1M": 1_000_000, "10M": 10_000_000}
PARTS = ("floor", "null", "grpc", "rest", "wide", "contention", "fairness", "overload", "workers", "growth")
QUICK_PARTS = PARTS[:4]
GENERATOR = "generator"

Orders = Mapping[str, list[list[str]]]
"""By group of clients, the numbers of every order."""
Parts = Mapping[str, list[psutil.Process]]
"""By name, the processes whose CPU is looked at."""


@dataclass(frozen=True)
class Effort:
    """How much is measured; the quick form leaves out what is seldom the best."""

    quick: bool
    rounds: int
    seconds: float
    warm_seconds: float
    workers: int


@dataclass(frozen=True)
class Measure:
    """One side in one round. Of `cpu_us` each is microseconds per order; the generator's own are among them."""

    orders_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: Mapping[str, float]
    others_cores: float  # how many cores were busy with something else: a result with much of it is worth little
    numbers_per_order: int = 1
    orders_per_batch: float | None = None  # of those that share a transaction; None where nobody counted

    @property
    def orders_per_cpu_second(self) -> float:
        """Of everything but the generator."""
        spent_us = sum(each for name, each in self.cpu_us.items() if name != GENERATOR)
        return 1e6 / spent_us if spent_us else 0.0


@dataclass(frozen=True)
class Side:
    """A name, its first word the part it belongs to, and how to measure it once."""

    name: str
    measure: Callable[[], Measure]


# ---------------------------------------------------------------- who sends what


def _shares(total: int, parts: int) -> list[int]:
    """So many as equally as can be, without empty shares."""
    shares = [total // parts + (i < total % parts) for i in range(parts)]
    return [share for share in shares if share]


def grpc_clients(workers: list[Address], buyers: list[Buyer], in_flight: int, group: str = "all") -> list[Client]:
    """Connections straight to the workers, each organization's orders to its own worker, as the edge sends them."""
    order_connections = [[buyer for buyer in buyers if buyer.lane(len(workers)) == i] for i in range(len(workers))]
    lanes_used = [(worker, lane) for worker, lane in zip(workers, order_connections, strict=True) if lane]
    clients = []
    for (worker, lane), share in zip(lanes_used, _shares(in_flight, len(lanes_used)), strict=False):
        connections = _shares(share, min(CONNECTIONS_PER_WORKER, share))
        for i, each in enumerate(connections):
            keys = [buyer.key for buyer in lane[i :: len(connections)]] or [lane[0].key]
            clients.append(Client(group, worker, each, keys))
    return clients


def rest_clients(edge: Address, buyers: list[Buyer], in_flight: int) -> list[Client]:
    """Connections to Envoy."""
    keys = [buyer.key for buyer in buyers]
    return [Client("all", edge, 1, keys[i::in_flight] or keys) for i in range(in_flight)]


# ---------------------------------------------------------------- measuring


class Bench:
    """The parts that run, and the sides that use them."""

    def __init__(self, postgres: Postgres, folder: Path, effort: Effort, stack: ExitStack) -> None:
        self.effort = effort
        self.markets: list[Market] = []
        self.worker_rss_mb = 0.0
        self._postgres = postgres
        self._folder = folder
        self._stack = stack
        self._services: dict[int, Service] = {}
        self._turn = count()

    def sides(self, parts: tuple[str, ...]) -> list[Side]:
        """The sides that share one database. Starts what they need."""
        if set(parts) - {"growth"}:
            self._open_market("bench")
        made: dict[str, Callable[[], Iterator[Side]]] = {
            "floor": self._floor_sides,
            "null": self._null_sides,
            "grpc": self._grpc_sides,
            "rest": self._rest_sides,
            "wide": self._wide_sides,
            "contention": self._contention_sides,
            "fairness": self._fairness_sides,
            "overload": self._overload_sides,
            "workers": self._worker_sides,
        }
        return [side for part in made if part in parts for side in made[part]()]

    def note_memory(self) -> None:
        """See how large the workers have become."""
        for service in self._services.values():
            self.worker_rss_mb = max(self.worker_rss_mb, service.worker_rss_mb_max)

    def violations(self) -> list[str]:
        """As `ordernumbers check` says, of every database."""
        return [violation for market in self.markets for violation in market.violations()]

    @property
    def market(self) -> Market:
        """The one that all sides but growth share."""
        return self.markets[0]

    def _open_market(self, name: str, **size: int) -> Market:
        self.markets.append(Market(self._postgres.new_database(name), **size))
        return self.markets[-1]

    def _service(self, workers: int | None = None) -> Service:
        workers = workers or self.effort.workers
        if workers not in self._services:
            folder = self._folder / f"service-{workers}"
            edge = workers == self.effort.workers
            running = running_service(folder, self.market.url, workers, edge=edge)
            self._services[workers] = self._stack.enter_context(running)
        return self._services[workers]

    # ------------------------------------------------------------ sides 1 and 2

    def _floor_sides(self) -> Iterator[Side]:
        quick = self.effort.quick
        for clients in FLOOR_CLIENTS[:2] if quick else FLOOR_CLIENTS:
            yield Side(f"floor many {clients}", lambda clients=clients: self._floor(clients))
        for clients in FLOOR_CLIENTS[:2] if quick else FLOOR_CLIENTS:
            yield Side(f"floor hot {clients}", lambda clients=clients: self._floor(clients, organizations=1))
        yield Side("floor many 1", lambda: self._floor(1))

    def _floor(self, clients: int, **only: int) -> Measure:
        effort = self.effort
        meter = Meter({"postgres": [self._postgres.process]})

        def began(pgbench: int) -> None:
            meter.parts = {**meter.parts, GENERATOR: [psutil.Process(pgbench)]}
            meter.began()

        result = run_floor(
            self.market,
            self._folder,
            clients=clients,
            warm_seconds=effort.warm_seconds,
            seconds=effort.seconds,
            began=began,
            ended=meter.ended,
            **only,
        )
        return _measure(result.succeeded, result.seconds, result, meter)

    def _null_sides(self) -> Iterator[Side]:
        servers = self._stack.enter_context(running_null_servers(self._folder / "null", self.effort.workers))
        for in_flight in IN_FLIGHT[-1:] if self.effort.quick else IN_FLIGHT[::2]:
            yield Side(f"null many {in_flight}", lambda n=in_flight: self._null(servers, n))

    def _null(self, servers: NullServers, in_flight: int) -> Measure:
        clients = grpc_clients(servers.workers, self.market.buyers, in_flight)
        orders = [["+12000000000"]] * self._orders_max(in_flight, 1)  # nobody looks at them
        result, meter = self._run("grpc", clients, {"all": orders}, {"server": servers.processes})
        return _measure_load(result, result.groups["all"], meter)

    # ------------------------------------------------------------ sides 3, 4 and 5

    def _grpc_sides(self) -> Iterator[Side]:
        service = self._service()
        for in_flight in IN_FLIGHT:
            yield Side(f"grpc many {in_flight}", lambda n=in_flight: self._grpc(service, n))
        for in_flight in IN_FLIGHT[-1:] if self.effort.quick else IN_FLIGHT:
            yield Side(f"grpc hot {in_flight}", lambda n=in_flight: self._grpc(service, n, organizations=1))

    def _grpc(self, service: Service, in_flight: int, organizations: int | None = None, numbers: int = 1) -> Measure:
        clients = grpc_clients(service.workers, self.market.buyers[:organizations], in_flight)
        return self._sell(service, "grpc", clients, in_flight, numbers)

    def _rest_sides(self) -> Iterator[Side]:
        service = self._service()
        for in_flight in IN_FLIGHT[::2]:
            yield Side(f"rest many {in_flight}", lambda n=in_flight: self._rest(service, n))
        if not self.effort.quick:
            yield Side(f"rest hot {IN_FLIGHT[-1]}", lambda: self._rest(service, IN_FLIGHT[-1], organizations=1))

    def _rest(self, service: Service, in_flight: int, organizations: int | None = None) -> Measure:
        clients = rest_clients(service.edge, self.market.buyers[:organizations], in_flight)
        return self._sell(service, "rest", clients, in_flight, 1)

    def _wide_sides(self) -> Iterator[Side]:
        service = self._service()
        for numbers in (1, 10, 100):
            yield Side(f"wide {numbers}", lambda n=numbers: self._grpc(service, IN_FLIGHT[-1], numbers=n))

    def _sell(self, service: Service, transport: str, clients: list[Client], in_flight: int, numbers: int) -> Measure:
        """Orders of numbers not yet sold. Raises RuntimeError if any is refused."""
        orders = self.market.orders(self._orders_max(in_flight, numbers), numbers)
        parts = dict(self._parts(service))
        if transport == "rest" and service.envoy:
            parts["envoy"] = [service.envoy]
        result, measure = self._run_and_count(self.market, transport, clients, {"all": orders}, parts)
        self.market.give_back((len(orders) - result.groups["all"].taken) * numbers)
        return replace(measure, numbers_per_order=numbers)

    # ------------------------------------------------------------ side 6, fairness, workers

    def _contention_sides(self) -> Iterator[Side]:
        service = self._service()
        yield Side(f"contention {IN_FLIGHT[-1]}", lambda: self._contend(service))

    def _contend(self, service: Service) -> Measure:
        """Every order wants one of the same few numbers, which all are sold in the end, and once."""
        scarce = self.market.take(SCARCE_NUMBERS)
        orders = [[number] for number in scarce] * (self._orders_max(IN_FLIGHT[-1], 1) // SCARCE_NUMBERS)
        clients = grpc_clients(service.workers, self.market.buyers, IN_FLIGHT[-1])
        result, meter = self._run("grpc", clients, {"all": orders}, self._parts(service))
        group, owners = result.groups["all"], self.market.owners(scarce)
        if not group.succeeded_in_all == owners == SCARCE_NUMBERS:
            raise RuntimeError(
                f"of {SCARCE_NUMBERS} numbers {group.succeeded_in_all} were sold, {owners} have an owner"
            )
        if "insufficient inventory" not in group.sample:
            raise RuntimeError(f"refused for another reason: {group.sample}")
        return _measure_load(result, group, meter)

    def _fairness_sides(self) -> Iterator[Side]:
        service = self._service()
        yield Side("fairness alone", lambda: self._share(service, flood=0))
        yield Side("fairness flooded", lambda: self._share(service, flood=120))

    def _share(self, service: Service, flood: int, others: int = 8) -> Measure:
        """How an organization fares (its latencies are told) when another sends much more to the same worker."""
        buyers = iter(self.market.buyers[next(self._turn) % 100 :])
        other = next(buyers)
        flooder = next(
            buyer for buyer in buyers if buyer.lane(len(service.workers)) == other.lane(len(service.workers))
        )
        in_flight = {"other": (other, others)} | ({"flood": (flooder, flood)} if flood else {})
        clients = [c for name, (buyer, n) in in_flight.items() for c in grpc_clients(service.workers, [buyer], n, name)]
        orders = {name: self.market.orders(self._orders_max(n, 1)) for name, (_, n) in in_flight.items()}
        _, measure = self._run_and_count(self.market, "grpc", clients, orders, self._parts(service), told="other")
        return measure

    def _overload_sides(self) -> Iterator[Side]:
        service = self._service()
        for times in OVERLOAD:
            yield Side(f"overload {times}x", lambda times=times: self._overload(service, times * IN_FLIGHT[-1]))

    def _overload(self, service: Service, in_flight: int) -> Measure:
        """Orders that are carried out while clients send again at once whatever is refused. Only those are counted."""
        orders = self.market.orders(self._orders_max(in_flight, 1))
        before = self.market.orders_made()
        clients = grpc_clients(service.workers, self.market.buyers, in_flight)
        result, meter = self._run("grpc", clients, {"all": orders}, self._parts(service))
        group, made = result.groups["all"], self.market.orders_made() - before
        if group.succeeded_in_all != made:
            raise RuntimeError(f"{group.succeeded_in_all} orders were answered, {made} carried out")
        if group.refused_in_all and "service unavailable" not in group.sample:
            raise RuntimeError(f"refused for another reason: {group.sample}")
        return _measure(group.succeeded, result.seconds, group, meter)

    def _worker_sides(self) -> Iterator[Side]:
        for workers in (1, 2):
            service = self._service(workers)
            yield Side(f"workers {workers}", lambda service=service: self._grpc(service, IN_FLIGHT[-1]))

    # ------------------------------------------------------------ common

    def _orders_max(self, in_flight: int, numbers: int) -> int:
        """More than can be carried out in the time there is."""
        per_second = min(ORDERS_PER_SECOND_MAX, ORDERS_PER_SECOND_MAX_ALONE * in_flight)
        if numbers > 1:
            per_second = min(per_second, NUMBERS_PER_SECOND_MAX // numbers)
        return int(per_second * (self.effort.warm_seconds + self.effort.seconds + 0.5))

    def _parts(self, service: Service) -> Parts:
        return {"server": [service.server], "postgres": [self._postgres.process]}

    def _run_and_count(
        self, market: Market, transport: str, clients: list[Client], orders: Orders, parts: Parts, told: str = "all"
    ) -> tuple[Result, Measure]:
        """Orders of numbers not yet sold. Raises RuntimeError if any is refused, or answered and not carried out."""
        before, pages = market.orders_made(), market.order_pages()
        result, meter = self._run(transport, clients, orders, parts)
        _require_all_sold(result, market.orders_made() - before)
        measure = _measure_load(result, result.groups[told], meter)
        return result, replace(measure, orders_per_batch=market.orders_per_batch(pages))

    def _run(self, transport: str, clients: list[Client], orders: Orders, parts: Parts) -> tuple[Result, Meter]:
        meter = Meter(parts)
        load = Load(transport, clients, dict(orders), self.effort.warm_seconds, self.effort.seconds)
        return run(load, meter.began, meter.ended), meter

    # ------------------------------------------------------------ side 7

    def growth_sides(self) -> Iterator[Side]:
        """Each inventory in a database of its own, and servers of its own only while it is measured."""
        orders_max = min(GROWTH.values()) // self.effort.rounds
        for name, size in GROWTH.items():
            market = self._open_market(f"growth_{name.lower()}", block_numbers=size)
            yield Side(f"growth {name}", lambda market=market: self._grow(market, orders_max))

    def _grow(self, market: Market, orders_max: int) -> Measure:
        market.checkpoint()
        workers = self.effort.workers
        with running_service(self._folder / f"growth-{next(self._turn)}", market.url, workers) as service:
            clients = grpc_clients(service.workers, market.buyers, IN_FLIGHT[-1])
            orders = market.orders(min(orders_max, self._orders_max(IN_FLIGHT[-1], 1)))
            result, measure = self._run_and_count(market, "grpc", clients, {"all": orders}, self._parts(service))
        market.give_back(len(orders) - result.groups["all"].taken)
        return measure


def _require_all_sold(result: Result, made: int) -> None:
    groups = result.groups.values()
    succeeded = sum(group.succeeded_in_all for group in groups)
    if refused := sum(group.refused_in_all for group in groups):
        raise RuntimeError(f"{refused} orders were refused: {[group.sample for group in groups]}")
    if succeeded != made:
        raise RuntimeError(f"{succeeded} orders were answered, {made} carried out")


def _measure_load(result: Result, told: GroupResult, meter: Meter) -> Measure:
    """Throughput and CPU of all that was answered, refusals too; latencies of the group that is told of."""
    answered = sum(group.succeeded + group.refused for group in result.groups.values())
    meter.cores[GENERATOR] = result.generator_cpu_seconds / result.seconds
    return _measure(answered, result.seconds, told, meter)


def _measure(orders: int, seconds: float, told: GroupResult | FloorResult, meter: Meter) -> Measure:
    if not orders:
        raise RuntimeError("nothing was answered in the time that was measured")
    cpu_us = {name: cores * seconds * 1e6 / orders for name, cores in meter.cores.items()}
    others = (psutil.cpu_count() or 1) - meter.idle_cores - sum(meter.cores.values())
    return Measure(orders / seconds, told.p50_ms, told.p99_ms, cpu_us, max(0.0, others))
