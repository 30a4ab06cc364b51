"""Which client sends the orders of which customers, and how many at a time."""

from tests.bench.database import BenchCustomer
from tests.bench.load import Client
from tests.bench.parts import Address

CONNECTIONS_PER_WORKER = 4


def _shares(total: int, parts: int) -> list[int]:
    """Split `total` into equal shares, without empty ones."""
    shares = [total // parts + (i < total % parts) for i in range(parts)]
    return [share for share in shares if share]


def grpc_clients(
    workers: list[Address], customers: list[BenchCustomer], in_flight: int, group: str = "all"
) -> list[Client]:
    """Connections to the workers. A customer's orders all go to one worker, as the edge sends them."""
    by_worker: dict[Address, list[BenchCustomer]] = {}
    for i, worker in enumerate(workers):
        if own := [customer for customer in customers if customer.worker_index(len(workers)) == i]:
            by_worker[worker] = own
    clients = []
    for (worker, own), share in zip(by_worker.items(), _shares(in_flight, len(by_worker)), strict=False):
        connections = _shares(share, min(CONNECTIONS_PER_WORKER, share))
        for i, each in enumerate(connections):
            keys = [customer.key for customer in own[i :: len(connections)]] or [own[0].key]
            clients.append(Client(group, worker, each, keys))
    return clients


def rest_clients(edge: Address, customers: list[BenchCustomer], in_flight: int) -> list[Client]:
    """Connections to Envoy."""
    keys = [customer.key for customer in customers]
    return [Client("all", edge, 1, keys[i::in_flight] or keys) for i in range(in_flight)]
