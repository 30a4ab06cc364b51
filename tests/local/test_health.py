"""`ordernumbers health`, which probes run beside the workers."""

import json
import subprocess

import pytest

from tests.support.edge import running_server, sell
from tests.support.stack import COMMAND, environment_of, local_settings


@pytest.fixture
def settings(tmp_path):
    return local_settings(tmp_path / ".data")  # with two workers


def health(settings, *options):
    """Return the exit status and what was printed."""
    command = [COMMAND, "health", "--json", *options]
    done = subprocess.run(command, env=environment_of(settings), capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or done.stderr)


def report(settings, *statuses):
    workers = dict(zip(map(str, settings.grpc_ports), statuses, strict=True))
    return {"serving": "SERVING" in statuses, "workers": workers}


def test_one_worker_that_serves_is_enough(settings):
    with running_server(settings.grpc_port, sell):
        assert health(settings) == (0, report(settings, "SERVING", "UNAVAILABLE"))


def test_a_worker_that_could_not_carry_out_an_order_is_not_enough(settings):
    with running_server(settings.grpc_port, sell, "NOT_SERVING"):
        assert health(settings) == (1, report(settings, "NOT_SERVING", "UNAVAILABLE"))


def test_without_workers_it_fails(settings):
    assert health(settings) == (1, report(settings, "UNAVAILABLE", "UNAVAILABLE"))


def test_a_wait_without_an_end_is_refused(settings):
    status, printed = health(settings, "--seconds", "0")
    assert status == 2
    assert "--seconds" in printed["error"]


def test_a_real_worker_serves(service):
    status, printed = health(service.settings)
    assert (status, printed["serving"]) == (0, True)
