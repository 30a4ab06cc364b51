"""The logs of `ordernumbers up`: every line on standard error is one JSON object, whatever wrote it."""

import json
import signal

import httpx
import psutil
import pytest

from tests.support.stack import Up, is_envoy, local_settings, wait_until


@pytest.fixture
def up(tmp_path, monkeypatch):
    # gRPC core then prints many lines of its own, from several threads.
    monkeypatch.setenv("GRPC_VERBOSITY", "debug")
    monkeypatch.setenv("GRPC_TRACE", "http")
    with Up(local_settings(tmp_path / ".data", workers=2), tmp_path) as up:
        yield up.until_ready()


def workers(up):
    return [process for process in up.processes() if "server.run.worker" in process.cmdline()]


def entries(up):
    return [json.loads(line) for line in up.logs.splitlines()]


def crash(process):
    process.send_signal(signal.SIGSEGV)
    psutil.wait_procs([process], timeout=10)


def test_every_line_is_json_also_from_grpc_core_and_after_crashes(up):
    assert httpx.get(f"{up.rest_url}/healthz").status_code == 200
    crash(workers(up)[0])
    up.until_logged("worker 0 exited")
    crash(next(process for process in up.processes() if is_envoy(process)))
    up.until_logged("Envoy exited")
    wait_until(lambda: len(workers(up)) == 2)
    up.parent.send_signal(signal.SIGTERM)
    up.parent.wait(30)
    of_workers = [entry for entry in entries(up) if entry.get("process", "").startswith("worker")]
    assert any("chttp2" in entry["message"] for entry in of_workers)
    assert {entry["process"] for entry in of_workers} == {"worker 0", "worker 1"}
    assert any("Segmentation fault" in entry.get("message", "") for entry in entries(up))  # Envoy's own JSON
