"""Whatever happens to a host: no acknowledged order is lost or doubled, and a 503 sold nothing."""

import time
from functools import partial

import pytest

from tests.ha import breaking
from tests.ha.load import Load, late_calls
from tests.support.stack import wait_until

WHOLE_SECONDS_MAX = 180
SALES = 100
"""How many orders show that the service works: before the fault, during it, and after it."""

FAULTS = {
    "switchover": (breaking.switchover, 10),
    "primary killed": (breaking.primary_killed, 10),
    "primary cut off": (breaking.primary_cut_off, 10),
    "primary frozen": (breaking.primary_frozen, 5),
    "only Patroni frozen": (breaking.patroni_frozen, 1),
    "only PostgreSQL killed": (breaking.postgresql_killed, 3),
    "standby lost": (breaking.standby_lost, 3),
    "etcd: minority lost": (breaking.etcd_minority_lost, 1),
    "etcd: majority lost": (breaking.etcd_majority_lost, 1),
    "server host lost": (breaking.server_lost, 3),
    "edge lost": (breaking.edge_lost, 3),
    "clock 30 s ahead": (breaking.clock(30), 1),
    "clock 30 s behind": (breaking.clock(-30), 1),
}
"""Each fault, and how often the full form repeats it."""
SHORT = ("edge lost", "switchover", "primary frozen", "primary killed")
ALL = [[fault] for turn in range(10) for fault, (_, times) in FAULTS.items() if turn < times]
"""In turns, so that a run that is ended early has some of each."""


def pytest_generate_tests(metafunc):
    if "faults" in metafunc.fixturenames:
        # The short form is one test, so that only one of pytest's workers starts the hosts.
        metafunc.parametrize("faults", ALL if metafunc.config.getoption("--full") else [SHORT], ids=", ".join)


@pytest.fixture
def load(times, cluster, engine):
    """A function that returns the clients. The short form shares two cores with other tests, so it has fewer."""
    clients, clients_without_keys = times((8, 4), (24, 12))
    return partial(Load, engine, cluster.edges, clients=clients, clients_without_keys=clients_without_keys)


def test_no_order_is_lost_or_doubled(request, faults, cluster, load, edge_logs, note):
    """Break something under load, repair it, and compare all responses with the database."""
    if "primary cut off" in faults and not cluster.network.can_cut:
        pytest.skip("a host can be cut off only in a network namespace: that needs root and iproute2")
    if faults[0].startswith("clock") and not breaking.CLOCK_LIBRARY.exists():
        pytest.skip("a wrong clock needs Debian's package libfaketime")

    is_full = request.config.getoption("--full")

    def until_whole():
        wait_until(cluster.is_whole, seconds_max=WHOLE_SECONDS_MAX, report=cluster.members)

    breaking.repair(cluster)
    until_whole()
    with load() as clients:
        for fault in faults:
            until_whole()
            clients.wait_for_orders(SALES)
            began = time.monotonic()
            with FAULTS[fault][0](cluster, clients):
                clients.wait_for_orders(SALES)
        if is_full:
            until_whole()
        clients.wait_for_orders(SALES)
    calls = edge_logs.new_calls()
    measured = clients.measured(", ".join(faults), began, len(late_calls(calls)))
    note(measured)
    print(measured, flush=True)
    report_late(clients.late, calls, began)
    clients.verify()
    assert (measured.lost, measured.doubled, measured.sold_after_503) == (0, 0, 0)
    if is_full:
        assert measured.late == 0


def report_late(outcomes, calls, began):
    """Print how long each late call took at its client and at its edge, and when it began."""
    ms = {call["request_id"]: call["ms"] for call in calls}
    for outcome in outcomes:
        seconds = outcome.ended - outcome.began
        at_the_edge = ms.get(outcome.request_id, "?")
        when = f"{outcome.began - began:+.1f} s after the fault"
        print(f"{outcome.code} {when}: {seconds:.2f} s at the client, {at_the_edge} ms at the edge", flush=True)
