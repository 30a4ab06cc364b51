"""Whatever happens to a host: no acknowledged order is lost or doubled, and a 503 sold nothing."""

import time

import pytest

from tests.ha import breaking
from tests.ha.load import Load
from tests.support.stack import wait_until

WHOLE_SECONDS_MAX = 120
SALES_BEFORE, SALES_AFTER = 100, 200

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
SHORT = ("switchover", "primary killed", "primary cut off")


def pytest_generate_tests(metafunc):
    if "faults" in metafunc.fixturenames:
        is_full = metafunc.config.getoption("--full")
        # The short form is one test, so that only one of pytest's workers starts the hosts.
        plans = [[fault] for fault, (_, times) in FAULTS.items() for _ in range(times)] if is_full else [SHORT]
        metafunc.parametrize("faults", plans, ids=", ".join)


@pytest.fixture
def run(request, cluster, engine, note):
    """A function that breaks something under load, repairs it, and compares all responses with the database."""

    runs_alone = request.config.getoption("--full")

    def run(fault, broken):
        if broken is breaking.primary_cut_off and not cluster.network.can_cut:
            pytest.skip("a host can be cut off only in a network namespace: that needs root and iproute2")
        if fault.startswith("clock") and not breaking.CLOCK_LIBRARY.exists():
            pytest.skip("a wrong clock needs Debian's package libfaketime")
        wait_until(cluster.is_whole, seconds_max=WHOLE_SECONDS_MAX)
        with Load(engine, cluster.edges) as load:
            load.wait_for_orders(SALES_BEFORE)
            began = time.monotonic()
            with broken(cluster, load):
                load.wait_for_orders(SALES_AFTER)
            wait_until(cluster.is_whole, seconds_max=WHOLE_SECONDS_MAX, report=cluster.members)
            load.wait_for_orders(SALES_AFTER)
        measured = load.measured(fault, began)
        note(measured)
        print(measured, *(late._replace(rows=None) for late in load.late), flush=True)
        load.verify()
        assert (measured.lost, measured.doubled, measured.sold_after_503) == (0, 0, 0)
        assert not (runs_alone and measured.late)

    return run


def test_no_order_is_lost_or_doubled(run, faults):
    for fault in faults:
        run(fault, FAULTS[fault][0])
