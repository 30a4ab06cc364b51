"""The sides of the benchmark. Each can be measured once per call, on parts that already run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

import psutil

from deploy.ha.network import network
from tests.bench.clients import grpc_clients, rest_clients
from tests.bench.database import BenchDatabase
from tests.bench.floor import run_floor
from tests.bench.generator import run
from tests.bench.load import Client, Load, Result
from tests.bench.measures import (
    GENERATOR,
    Effort,
    Measure,
    Orders,
    Parts,
    Side,
    measure_load,
    measure_of,
    require_all_sold,
)
from tests.bench.parts import (
    OURS,
    Meter,
    NullServers,
    Postgres,
    RestServer,
    RunningService,
    Tree,
    running_bare_edge,
    running_hosts,
    running_null_servers,
    running_peer,
    running_service,
)

ORDERS_PER_SECOND_MAX = 25_000
ORDERS_PER_SECOND_MAX_ALONE = 4000  # with one in flight
NUMBERS_PER_SECOND_MAX = 60_000
IN_FLIGHT = (1, 32, 128)
OVERLOAD = (1, 10, 40)
"""Multiples of 128 orders in flight. With the last, the workers' queues are full and most orders are refused."""
FLOOR_CLIENTS = (8, 32, 64)
SCARCE_NUMBERS = 10
WORKERS = (1, 2, 4)
HOSTS = {"hosts 1": ("alone",), "hosts 2": ("first", "second")}
"""The names of the hosts with workers, per side."""
HOSTS_WORKERS = 2
"""How many workers all hosts of a side have together."""
PEER_FIRST_ORDERS = 500
GROWTH = {"100k": 100_000, "1M": 1_000_000, "10M": 10_000_000}
PARTS = (
    "floor",
    "null",
    "grpc",
    "rest",
    "peer",
    "wide",
    "contention",
    "fairness",
    "overload",
    "workers",
    "hosts",
    "growth",
    "reads",
)
LONG_PARTS = ("size",)
"""Parts that a run has only when they are named: they take most of an hour, and 20 GB of disk."""
QUICK_PARTS = PARTS[:4]
AGAINST_PARTS = ("grpc", "rest", "wide", "contention", "fairness", "overload")
"""The parts that another commit can be compared in."""


# ---------------------------------------------------------------- measuring


class Bench:
    """The parts that run, and the sides that use them."""

    def __init__(
        self,
        postgres: Postgres,
        folder: Path,
        effort: Effort,
        stack: ExitStack,
        tree: Tree = OURS,
        name: str = "bench",
    ) -> None:
        self.effort = effort
        self._tree = tree
        self._name = name
        self.databases: list[BenchDatabase] = []
        self.workers_rss_mb: list[float] = []
        """The memory of the largest worker, once per round."""
        self.postgres = postgres
        self.folder = folder
        self.stack = stack
        self._services: dict[int, RunningService] = {}
        self._runs = count()

    def sides(self, parts: tuple[str, ...]) -> list[Side]:
        """The sides that share one database. Starts what they need."""
        if set(parts) - {"peer", "growth", "reads", "size"}:
            self.open_database(self._name)
        made: dict[str, Callable[[], Iterator[Side]]] = {
            "floor": self._floor_sides,
            "null": self._null_sides,
            "grpc": self._grpc_sides,
            "rest": self._rest_sides,
            "peer": self._peer_sides,
            "wide": self._wide_sides,
            "contention": self._contention_sides,
            "fairness": self._fairness_sides,
            "overload": self._overload_sides,
            "workers": self._worker_sides,
            "hosts": self._host_sides,
        }
        return [side for part in made if part in parts for side in made[part]()]

    def note_memory(self) -> None:
        """Note how much memory the largest worker uses."""
        if self._services:
            self.workers_rss_mb.append(max(service.worker_rss_mb_max for service in self._services.values()))

    def violations(self) -> list[str]:
        """The violations that `ordernumbers check` finds, in all databases."""
        return [violation for database in self.databases for violation in database.violations()]

    @property
    def database(self) -> BenchDatabase:
        """The database of all sides but peer, growth, reads and size."""
        return self.databases[0]

    def open_database(self, name: str, **size: int) -> BenchDatabase:
        self.databases.append(BenchDatabase(self.postgres.new_database(name), self._tree, **size))
        return self.databases[-1]

    def _service(self, workers: int | None = None) -> RunningService:
        workers = workers or self.effort.workers
        if workers not in self._services:
            folder = self.folder / f"{self._name}-{workers}"
            edge = workers == self.effort.workers
            running = running_service(folder, self.database.url, workers, edge=edge, tree=self._tree)
            self._services[workers] = self.stack.enter_context(running)
        return self._services[workers]

    # ------------------------------------------------------------ floor

    def _floor_sides(self) -> Iterator[Side]:
        quick = self.effort.quick
        for clients in FLOOR_CLIENTS[:2] if quick else FLOOR_CLIENTS:
            yield Side(f"floor many {clients}", lambda clients=clients: self._floor(clients))
        for clients in FLOOR_CLIENTS[:2] if quick else FLOOR_CLIENTS:
            yield Side(f"floor hot {clients}", lambda clients=clients: self._floor(clients, organizations=1))
        yield Side("floor many 1", lambda: self._floor(1))

    def _floor(self, clients: int, **only: int) -> Measure:
        effort = self.effort
        meter = Meter({"postgres": [self.postgres.process]})

        def start(pgbench_pid: int) -> None:
            meter.parts = {**meter.parts, GENERATOR: [psutil.Process(pgbench_pid)]}
            meter.start()

        result = run_floor(
            self.database,
            self.folder,
            clients=clients,
            warm_seconds=effort.warm_seconds,
            seconds=effort.seconds,
            on_start=start,
            on_stop=meter.stop,
            **only,
        )
        return measure_of(result.succeeded, result.seconds, result, meter)

    # ------------------------------------------------------------ null

    def _null_sides(self) -> Iterator[Side]:
        null, idle = self._null_servers("null"), self._null_servers("idle", "--batch")
        for in_flight in IN_FLIGHT[-1:] if self.effort.quick else IN_FLIGHT[::2]:
            yield Side(f"null many {in_flight}", lambda n=in_flight: self._null(null, n))
        yield Side(f"idle batch {IN_FLIGHT[-1]}", lambda: self._null(idle, IN_FLIGHT[-1]))

    def _null_servers(self, name: str, *options: str) -> NullServers:
        return self.stack.enter_context(running_null_servers(self.folder / name, self.effort.workers, *options))

    def _null(self, servers: NullServers, in_flight: int) -> Measure:
        clients = grpc_clients(servers.workers, self.database.customers, in_flight)
        orders = [["+12000000000"]] * self.orders_max(in_flight, 1)  # the null server does not read them
        result, meter = self._run("grpc", clients, {"all": orders}, {"server": servers.processes})
        return measure_load(result, result.groups["all"], meter)

    # ------------------------------------------------------------ grpc and wide

    def _grpc_sides(self) -> Iterator[Side]:
        service = self._service()
        for in_flight in IN_FLIGHT:
            yield Side(f"grpc many {in_flight}", lambda n=in_flight: self._grpc(service, n))
        for in_flight in IN_FLIGHT[-1:] if self.effort.quick else IN_FLIGHT:
            yield Side(f"grpc hot {in_flight}", lambda n=in_flight: self._grpc(service, n, organizations=1))

    def _wide_sides(self) -> Iterator[Side]:
        service = self._service()
        for numbers in (1, 10, 100):
            yield Side(f"wide {numbers}", lambda n=numbers: self._grpc(service, IN_FLIGHT[-1], numbers=n))

    def _grpc(
        self, service: RunningService, in_flight: int, organizations: int | None = None, numbers: int = 1
    ) -> Measure:
        clients = grpc_clients(service.workers, self.database.customers[:organizations], in_flight)
        return self.sell(self.database, "grpc", clients, in_flight, self.parts(service), numbers)

    # ------------------------------------------------------------ rest and peer

    def _rest_sides(self) -> Iterator[Side]:
        service = self._service()
        assert service.envoy
        edge = RestServer(service.edge, service.envoy)
        for in_flight in IN_FLIGHT[::2]:
            yield Side(f"rest many {in_flight}", lambda n=in_flight: self._rest(service, edge, n))
        if not self.effort.quick:
            yield Side(f"rest hot {IN_FLIGHT[-1]}", lambda: self._rest(service, edge, IN_FLIGHT[-1], organizations=1))
        if self._tree == OURS:
            bare = self.stack.enter_context(running_bare_edge(self.folder / "bare-edge", service.settings))
            yield Side(f"edge bare {IN_FLIGHT[-1]}", lambda: self._rest(service, bare, IN_FLIGHT[-1]))

    def _rest(
        self, service: RunningService, edge: RestServer, in_flight: int, organizations: int | None = None
    ) -> Measure:
        clients = rest_clients(edge.address, self.database.customers[:organizations], in_flight)
        parts = {**self.parts(service), "envoy": [edge.process]}
        return self.sell(self.database, "rest", clients, in_flight, parts)

    def _peer_sides(self) -> Iterator[Side]:
        database = self.open_database("peer")
        peer = self.stack.enter_context(running_peer(self.folder / "peer", database.url, self.effort.workers))
        # With its first orders it opens its connections and compiles its statements.
        orders = database.orders(PEER_FIRST_ORDERS)
        clients = rest_clients(peer.address, database.customers, IN_FLIGHT[-1])
        require_all_sold(run(Load("rest", clients, {"all": orders}, warm_seconds=0, seconds=60)), len(orders))
        yield Side(f"peer {IN_FLIGHT[-1]}", lambda: self._peer(database, peer, IN_FLIGHT[-1]))

    def _peer(self, database: BenchDatabase, peer: RestServer, in_flight: int) -> Measure:
        clients = rest_clients(peer.address, database.customers, in_flight)
        parts = {"server": [peer.process], "postgres": [self.postgres.process]}
        return self.sell(database, "rest", clients, in_flight, parts)

    # ------------------------------------------------------------ contention, fairness, overload, workers, hosts

    def _contention_sides(self) -> Iterator[Side]:
        service = self._service()
        yield Side(f"contention {IN_FLIGHT[-1]}", lambda: self._contention(service))

    def _contention(self, service: RunningService) -> Measure:
        """Measure orders that all want one of the same few numbers."""
        scarce = self.database.take(SCARCE_NUMBERS)
        orders = [[number] for number in scarce] * (self.orders_max(IN_FLIGHT[-1], 1) // SCARCE_NUMBERS)
        clients = grpc_clients(service.workers, self.database.customers, IN_FLIGHT[-1])
        result, meter = self._run("grpc", clients, {"all": orders}, self.parts(service))
        group, assigned = result.groups["all"], self.database.count_assigned(scarce)
        if not group.succeeded_in_all == assigned == SCARCE_NUMBERS:
            raise RuntimeError(
                f"of {SCARCE_NUMBERS} numbers {group.succeeded_in_all} were sold, {assigned} are assigned"
            )
        if "insufficient inventory" not in group.sample:
            raise RuntimeError(f"refused for another reason: {group.sample}")
        return measure_load(result, group, meter)

    def _fairness_sides(self) -> Iterator[Side]:
        service = self._service()
        yield Side("fairness alone", lambda: self._fairness(service, flood=0))
        yield Side("fairness flooded", lambda: self._fairness(service, flood=120))

    def _fairness(self, service: RunningService, flood: int, others: int = 8) -> Measure:
        """Measure one customer's latencies while another sends `flood` orders at a time to the same worker."""
        # Other customers each time, so that no single pair decides the result.
        customers = iter(self.database.customers[next(self._runs) % 100 :])
        workers = len(service.workers)
        other = next(customers)
        flooder = next(each for each in customers if each.worker_index(workers) == other.worker_index(workers))
        in_flight = {"other": (other, others)} | ({"flood": (flooder, flood)} if flood else {})
        clients = [
            client
            for name, (customer, n) in in_flight.items()
            for client in grpc_clients(service.workers, [customer], n, name)
        ]
        orders = {name: self.database.orders(self.orders_max(n, 1)) for name, (_, n) in in_flight.items()}
        _, measure = self.run_and_count(
            self.database, "grpc", clients, orders, self.parts(service), latencies_of="other"
        )
        return measure

    def _overload_sides(self) -> Iterator[Side]:
        service = self._service()
        for times in OVERLOAD:
            yield Side(f"overload {times}x", lambda times=times: self._overload(service, times * IN_FLIGHT[-1]))

    def _overload(self, service: RunningService, in_flight: int) -> Measure:
        """Measure placed orders, while clients send refused orders again at once."""
        orders = self.database.orders(self.orders_max(in_flight, 1))
        before = self.database.orders_made()
        clients = grpc_clients(service.workers, self.database.customers, in_flight)
        result, meter = self._run("grpc", clients, {"all": orders}, self.parts(service))
        group, made = result.groups["all"], self.database.orders_made() - before
        if group.succeeded_in_all != made:
            raise RuntimeError(f"{group.succeeded_in_all} orders succeeded, {made} are in the database")
        if group.refused_in_all and "service unavailable" not in group.sample:
            raise RuntimeError(f"refused for another reason: {group.sample}")
        return measure_of(group.succeeded, result.seconds, group, meter)

    def _worker_sides(self) -> Iterator[Side]:
        for workers in WORKERS:
            service = self._service(workers)
            yield Side(f"workers {workers}", lambda service=service: self._grpc(service, IN_FLIGHT[-1]))

    def _host_sides(self) -> Iterator[Side]:
        hosts = self.stack.enter_context(network([host for names in HOSTS.values() for host in names]))
        for side, names in HOSTS.items():
            folder = self.folder / f"hosts-{len(names)}"
            running = running_hosts(folder, self.database.url, hosts, names, HOSTS_WORKERS // len(names))
            service = self.stack.enter_context(running)
            assert service.envoy
            edge = RestServer(service.edge, service.envoy)
            yield Side(side, lambda service=service, edge=edge: self._rest(service, edge, IN_FLIGHT[-1]))

    # ------------------------------------------------------------ common

    def orders_max(self, in_flight: int, numbers: int) -> int:
        """More orders than can be carried out in the time of one measure."""
        per_second = min(ORDERS_PER_SECOND_MAX, ORDERS_PER_SECOND_MAX_ALONE * in_flight)
        if numbers > 1:
            per_second = min(per_second, NUMBERS_PER_SECOND_MAX // numbers)
        return int(per_second * (self.effort.warm_seconds + self.effort.seconds + 0.5))

    def parts(self, service: RunningService) -> Parts:
        return {"server": service.servers, "postgres": [self.postgres.process]}

    def sell(
        self,
        database: BenchDatabase,
        transport: str,
        clients: list[Client],
        in_flight: int,
        parts: Parts,
        numbers: int = 1,
    ) -> Measure:
        """Measure orders of so many new numbers each. Raises RuntimeError if one is refused."""
        orders = database.orders(self.orders_max(in_flight, numbers), numbers)
        result, measure = self.run_and_count(database, transport, clients, {"all": orders}, parts)
        database.give_back((len(orders) - result.groups["all"].taken) * numbers)
        return replace(measure, numbers_per_order=numbers)

    def run_and_count(
        self,
        database: BenchDatabase,
        transport: str,
        clients: list[Client],
        orders: Orders,
        parts: Parts,
        latencies_of: str = "all",
    ) -> tuple[Result, Measure]:
        """Measure orders of new numbers. Raises RuntimeError if one is refused, or is not in the database."""
        before, pages = database.orders_made(), database.order_pages()
        result, meter = self._run(transport, clients, orders, parts)
        require_all_sold(result, database.orders_made() - before)
        measure = measure_load(result, result.groups[latencies_of], meter)
        return result, replace(measure, orders_per_batch=database.orders_per_batch(pages))

    def _run(self, transport: str, clients: list[Client], orders: Orders, parts: Parts) -> tuple[Result, Meter]:
        meter = Meter(parts)
        load = Load(transport, clients, dict(orders), self.effort.warm_seconds, self.effort.seconds)
        return run(load, meter.start, meter.stop), meter

    # ------------------------------------------------------------ growth

    def growth_sides(self) -> Iterator[Side]:
        """Each inventory has its own database. It has servers only while it is measured."""
        orders_max = min(GROWTH.values()) // self.effort.rounds
        for name, size in GROWTH.items():
            database = self.open_database(f"growth_{name.lower()}", block_numbers=size)
            yield Side(f"growth {name}", lambda database=database: self._growth(database, orders_max))

    def _growth(self, database: BenchDatabase, orders_max: int) -> Measure:
        database.checkpoint()
        workers = self.effort.workers
        with running_service(self.folder / f"growth-{next(self._runs)}", database.url, workers) as service:
            clients = grpc_clients(service.workers, database.customers, IN_FLIGHT[-1])
            orders = database.orders(min(orders_max, self.orders_max(IN_FLIGHT[-1], 1)))
            result, measure = self.run_and_count(database, "grpc", clients, {"all": orders}, self.parts(service))
        database.give_back(len(orders) - result.groups["all"].taken)
        return measure
