"""An inventory grows to several sizes, and each size is measured."""

from contextlib import ExitStack

import psutil
import pytest

from server.store.check import violations
from tests.bench.measures import Effort
from tests.bench.parts import Postgres
from tests.bench.sides import Bench
from tests.bench.size import sizes

EFFORT = Effort(quick=True, rounds=1, seconds=0.5, warm_seconds=0.1, workers=1)
IMPORTED = 10_000


@pytest.fixture
def bench(postgres, tmp_path):
    with ExitStack() as stack:
        bench = Bench(Postgres(postgres, psutil.Process()), tmp_path, EFFORT, stack)
        yield bench
    assert violations(bench.databases[0].engine) == []
    bench.postgres.drop_database("sizes")


def test_each_size_has_its_numbers_and_sells_and_finds_them(bench):
    found = {}
    for size in sizes(bench, {"20k": 20_000, "40k": 40_000}, IMPORTED):
        measures = {side.name: side.measure() for side in size.sides}
        assert all(measure.p50_ms > 0 for measure in measures.values())
        assert {f"size {size.name} orders", f"size {size.name} 7 digits"} <= set(measures)
        found[size.name] = size.figures
    assert [figures["numbers"] for figures in found.values()] == [20_001, 40_001]  # and one that no side uses
    for figures in found.values():
        assert figures["import_lines"] == IMPORTED
        indexes = {"phone_number_pkey", "phone_number_search", "phone_number_digits"}
        assert set(figures["bytes_per_number"]) == {"phone_number", *indexes}
        assert len(figures["wal_bytes_per_order"]) == EFFORT.rounds
