"""`ordernumbers check --metrics-file`: what a cron job leaves for the node exporter."""

import os
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.metrics import Sample


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ordernumbers.prom"


def values(file):
    samples = [sample for family in text_string_to_metric_families(file.read_text()) for sample in family.samples]
    assert all(Sample(*sample[:3]).labels == {} for sample in samples)
    return {sample.name.removeprefix("ordernumbers_check_"): sample.value for sample in samples}


@pytest.fixture
def durable(monkeypatch):
    """Do not look at the durability settings. The tests' PostgreSQL has fsync off."""
    monkeypatch.setattr("server.store.check._RISKS_WHEN_OFF", {})


def test_a_check_that_finds_nothing_is_ok(ordernumbers, file, durable):
    before = time.time()
    assert ordernumbers("check", "--metrics-file", file)["ok"]
    found = values(file)
    assert (found["ok"], found["violations"]) == (1, 0)
    assert before <= found["timestamp_seconds"] <= time.time()
    assert 0 < found["duration_seconds"] < 60
    assert file.stat().st_mode & 0o044 == 0o044, "the node exporter is another user"


def test_a_check_that_fails_writes_that_and_keeps_its_status(ordernumbers, file):
    status, out, _ = ordernumbers.run("check", "--metrics-file", file)
    assert status == 1
    assert "fsync is off" in out
    assert (values(file)["ok"], values(file)["violations"]) == (0, len(out.splitlines()))


def test_the_file_is_replaced_as_a_whole(ordernumbers, file, durable):
    file.write_text("old")
    with file.open() as old:
        ordernumbers("check", "--metrics-file", file)
        assert old.read() == "old"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ordernumbers.txt", "does not end in .prom, so the node exporter would not read it"),
        ("missing/ordernumbers.prom", "cannot write to the folder"),
        ("folder.prom", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_check(ordernumbers, tmp_path, monkeypatch, name, reason):
    (tmp_path / "folder.prom").mkdir()
    monkeypatch.setattr("server.store.check.violations", None)  # the check would fail
    assert reason in ordernumbers.refusal("check", "--metrics-file", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.prom"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("mode", [0o500, 0])
def test_a_folder_that_we_may_not_write_to_is_refused(ordernumbers, tmp_path, mode):
    folder = tmp_path / "folder"
    folder.mkdir(mode)
    assert "Permission denied" in ordernumbers.refusal("check", "--metrics-file", folder / "ordernumbers.prom")


def test_a_check_that_cannot_reach_the_database_leaves_the_old_file(ordernumbers, file, monkeypatch):
    file.write_text("old")
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/numbers")
    assert "cannot reach the database" in ordernumbers.refusal("check", "--metrics-file", file)
    assert file.read_text() == "old"
