"""The sides of reads, and of orders beside searches, in an inventory of ten million numbers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from tests.bench.clients import grpc_clients
from tests.bench.database import BenchCustomer, BenchDatabase
from tests.bench.generator import run
from tests.bench.load import Load
from tests.bench.measures import Measure, Side, measure_of, require_all_sold
from tests.bench.parts import Meter, RunningService, running_service
from tests.bench.read_calls import NUMBERS_PER_ORDER, OWNED_NUMBERS, Caller, add_areas, searching
from tests.bench.sides import IN_FLIGHT, Bench

READ_WARM_SECONDS = 0.2


def read_sides(bench: Bench) -> Iterator[Side]:
    """Start a service of its own, and yield its sides."""
    database = bench.open_database("reads")
    add_areas(database)
    service = bench.stack.enter_context(running_service(bench.folder / "reads", database.url, bench.effort.workers))
    customer = database.customers[0]
    caller = Caller(service.workers[customer.worker_index(len(service.workers))], customer)
    bench.stack.callback(caller.close)
    _buy(database, service, customer)
    for name, call in {**searches(caller), "list": caller.list_page}.items():
        yield Side(f"reads {name}", lambda call=call: measure_read(bench, service, caller, call))
    yield Side("reads none beside orders", lambda: _orders_beside(bench, database, service, nullcontext()))
    yield Side("reads 20/s beside orders", lambda: _orders_beside(bench, database, service, searching(caller)))


def searches(caller: Caller) -> dict[str, Callable[[], bytes]]:
    """What is searched for, and the call."""
    return {
        "area": lambda: caller.search(area=True, digits=0),
        "area + 4 digits": lambda: caller.search(area=True, digits=4),
        "area + 7 digits": lambda: caller.search(area=True, digits=7),
        "4 digits": lambda: caller.search(area=False, digits=4),
        "7 digits": lambda: caller.search(area=False, digits=7),
    }


def _buy(database: BenchDatabase, service: RunningService, customer: BenchCustomer) -> None:
    """Order the numbers whose list is read."""
    orders = database.orders(OWNED_NUMBERS // NUMBERS_PER_ORDER, NUMBERS_PER_ORDER)
    clients = grpc_clients(service.workers, [customer], 8)
    require_all_sold(run(Load("grpc", clients, {"all": orders}, warm_seconds=0, seconds=120)), len(orders))


def measure_read(bench: Bench, service: RunningService, caller: Caller, call: Callable[[], bytes]) -> Measure:
    """Measure a read, one call at a time."""
    meter = Meter(bench.parts(service))
    meter.start()
    measured = caller.measure(call, READ_WARM_SECONDS, bench.effort.seconds)
    meter.stop()
    return measure_of(measured.count, measured.seconds, measured, meter)


def _orders_beside(
    bench: Bench, database: BenchDatabase, service: RunningService, beside: AbstractContextManager[None]
) -> Measure:
    clients = grpc_clients(service.workers, database.customers, IN_FLIGHT[-1])
    with beside:
        return bench.sell(database, "grpc", clients, IN_FLIGHT[-1], bench.parts(service))
