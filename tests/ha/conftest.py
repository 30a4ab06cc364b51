"""The hosts of `make ha` for all tests here, and the table of what was measured."""

import statistics

import pytest

from deploy.ha.cluster import HOSTS, Cluster, missing_parts
from deploy.ha.network import Loopback, network
from server.store.engine import admin_engine
from tests.ha.load import EdgeLogs
from tests.support.databases import open_folder

COUNTS = {
    "sales": "sales",
    "lost": "lost",
    "doubled": "doubled",
    "503 but sold": "sold_after_503",
    "late at the edge": "late",
    "late at the client": "late_at_clients",
}
_measured = []


@pytest.fixture(scope="session")
def cluster(request):
    """The hosts. For the short form they need no root: `make test` must run everywhere."""
    if missing := missing_parts():
        pytest.skip(f"not installed: {', '.join(missing)}")
    chosen = network(HOSTS) if request.config.getoption("--full") else Loopback(HOSTS)
    with open_folder() as folder, chosen as hosts, Cluster(folder, hosts) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def engine(cluster):
    return admin_engine(cluster.url)


@pytest.fixture(scope="session")
def edge_logs(cluster):
    return EdgeLogs(cluster)


@pytest.fixture
def note():
    """Remember what was measured, for the table at the end."""
    return _measured.append


def pytest_terminal_summary(terminalreporter):
    if _measured:
        terminalreporter.section("high availability")
        terminalreporter.write_line(table(_measured))


def table(measured):
    """The measurements as a table in Markdown, a line per fault."""
    head = ["fault", "times", "gap: median (range) in s", *COUNTS]
    lines = [head, ["---"] * len(head)]
    for fault in dict.fromkeys(one.fault for one in measured):
        ones = [one for one in measured if one.fault == fault]
        gaps = [one.gap_seconds for one in ones]
        gap = f"{statistics.median(gaps):.1f} ({min(gaps):.1f} to {max(gaps):.1f})"
        counts = [sum(getattr(one, name) for one in ones) for name in COUNTS.values()]
        lines.append([fault, len(ones), gap, *counts])
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
