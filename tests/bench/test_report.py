"""The ratios of a result: their names, their values, and their range over the rounds."""

import pytest

from tests.bench.measures import GENERATOR, Measure
from tests.bench.report import GOALS, RATIOS, with_ranges

OF_THE_ISSUE = [
    "grpc_vs_pgbench",
    "server_cpu_vs_idle_batch",
    "edge_cpu_vs_bare",
    "rest_vs_peer",
    "hot_org_vs_pgbench",
    "latency_vs_pgbench",
    "fairness_p99",
    "goodput_at_40x",
    "wide_numbers_vs_single",
    "growth_10m_vs_100k",
    "worker_rss_mb",
]


def measure(orders_per_second=1000.0, p50_ms=10.0, p99_ms=20.0, numbers=1, **cpu_us):
    cpu_us = {"server": 400.0, "envoy": 300.0, "postgres": 100.0, GENERATOR: 20.0} | cpu_us
    return Measure(orders_per_second, p50_ms, p99_ms, cpu_us, others_cores=0.0, numbers_per_order=numbers)


@pytest.fixture
def rounds():
    """Three rounds of every side that a ratio needs. All have the same figures."""
    names = {name.replace("*", "8") for ratio in RATIOS for name in (ratio.of, ratio.to)}
    return {name: [measure()] * 3 for name in names}


def test_each_ratio_has_a_range_and_a_goal(rounds):
    found = with_ranges(rounds, [100.0, 120.0])
    for name in OF_THE_ISSUE:
        assert f"{name}_range" in found
        assert name in GOALS
    assert set(GOALS) - set(found) == {name for name in GOALS if name.startswith("reads ")}


def test_a_ratio_is_of_the_medians_and_its_range_of_single_rounds(rounds):
    rounds["grpc many 128"] = [measure(speed) for speed in (900, 2000, 1500)]
    found = with_ranges(rounds, [])
    assert found["grpc_vs_pgbench"] == 1.5
    assert found["grpc_vs_pgbench_range"] == [0.9, 2.0]


def test_a_ratio_to_several_sides_takes_the_fastest(rounds):
    rounds |= {"floor many 32": [measure(2000)] * 3, "floor many 64": [measure(1500)] * 3}
    assert with_ranges(rounds, [])["grpc_vs_pgbench"] == 0.5


def test_the_cpu_of_the_server_and_of_envoy_is_compared_per_order(rounds):
    rounds["idle batch 128"] = [measure(server=160.0)] * 3
    rounds["edge bare 128"] = [measure(envoy=250.0)] * 3
    found = with_ranges(rounds, [])
    assert (found["server_cpu_vs_idle_batch"], found["edge_cpu_vs_bare"]) == (2.5, 1.2)


def test_numbers_are_compared_where_orders_have_several(rounds):
    rounds["wide 100"] = [measure(100, numbers=100)] * 3
    assert with_ranges(rounds, [])["wide_numbers_vs_single"] == 10.0


def test_latencies_are_compared_where_they_are_the_goal(rounds):
    rounds["grpc many 1"] = [measure(p50_ms=25.0)] * 3
    rounds["fairness flooded"] = [measure(p99_ms=50.0)] * 3
    found = with_ranges(rounds, [])
    assert (found["latency_vs_pgbench"], found["fairness_p99"]) == (2.5, 2.5)


def test_the_memory_of_a_worker_is_the_highest_of_the_rounds(rounds):
    found = with_ranges(rounds, [110.0, 130.04, 120.0])
    assert (found["worker_rss_mb"], found["worker_rss_mb_range"]) == (130.0, [110.0, 130.0])


def test_another_commit_is_compared_within_each_round(rounds):
    ours, theirs = (1000, 3000, 2000), (500, 1000, 2000)
    rounds["rest many 128"] = [measure(speed) for speed in ours]
    rounds["rest many 128 against"] = [measure(speed) for speed in theirs]
    rounds["overload 1x against"] = [measure(9000)] * 3
    found = with_ranges(rounds, [])
    assert found["against rest many 128"] == 2.0
    assert found["against rest many 128_range"] == [1.0, 3.0]
    assert found["against rest many 128_cpu_quartiles"] == [1.0, 1.0]  # all have the same CPU per order
    assert found["goodput_at_40x"] == 1.0  # of our own peak
