"""The hosts of `make ha` for all tests here, and the table of what was measured."""

import statistics

import pytest

from deploy.ha.cluster import HOSTS, Cluster, missing_parts
from deploy.ha.network import network
from server.store.engine import admin_engine
from tests.support.databases import open_folder

COLUMNS = ("fault", "times", "gap: median (range) in s", "sales", "lost", "doubled", "503 but sold", "late")
_measured = []


@pytest.fixture(scope="session")
def cluster():
    if missing := missing_parts():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with open_folder() as folder, network(HOSTS) as hosts, Cluster(folder, hosts) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def engine(cluster):
    return admin_engine(cluster.url)


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
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for fault in dict.fromkeys(one.fault for one in measured):
        ones = [one for one in measured if one.fault == fault]
        gaps = [one.gap_seconds for one in ones]
        gap = f"{statistics.median(gaps):.1f} ({min(gaps):.1f} to {max(gaps):.1f})"
        counts = [
            sum(getattr(one, name) for one in ones) for name in ("sales", "lost", "doubled", "sold_after_503", "late")
        ]
        lines.append([fault, len(ones), gap, *counts])
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
