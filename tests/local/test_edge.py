"""`ordernumbers edge` as a process: who can reach Envoy's admin page, and what happens after misuse of it."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from server.run.edge import _envoy_path
from server.run.envoy_admin import admin_socket, ask
from tests.support.callers import ROUTE
from tests.support.edge import running_server, sell
from tests.support.stack import Up, is_envoy, local_settings, wait_until

ROOT = Path(__file__).parents[2]
NOBODY = 65534
CONNECT = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([]), os.setgid(uid), os.setuid(uid)
socket.socket(socket.AF_UNIX).connect(path)
"""


@pytest.fixture
def edge(tmp_path):
    settings = local_settings(tmp_path / ".data", workers=1)
    with running_server(settings.grpc_port, sell), Up(settings, tmp_path, command="edge") as edge:
        # Envoy listens a little earlier than its supervisor knows it.
        edge.until_logged("the edge listens on")
        wait_until(lambda: health(edge) == 200)
        yield edge


def health(edge):
    """Return the status of /healthz, or None if the edge does not listen."""
    try:
        return httpx.get(f"{edge.rest_url}/healthz").status_code
    except httpx.HTTPError:
        return None


def envoy(edge):
    return next(process for process in edge.processes() if is_envoy(process))


def tcp_ports(process):
    return {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}


# ---------------------------------------------------------------- who can reach the admin page


def test_envoy_listens_on_its_own_ports_and_on_no_other(edge):
    assert tcp_ports(envoy(edge)) == {edge.settings.rest_port, edge.settings.edge_metrics_port}


def test_envoy_run_by_hand_with_the_unchanged_file_listens_on_no_other_port_either(tmp_path):
    unchanged = (ROOT / "envoy/envoy.yaml").read_text()
    port = local_settings(tmp_path).rest_port
    config = tmp_path / "envoy.yaml"
    config.write_text(unchanged.replace("port_value: 8080", f"port_value: {port}"))
    command = [_envoy_path(), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as envoy:
        try:
            wait_until(lambda: tcp_ports(psutil.Process(envoy.pid)))
            assert tcp_ports(psutil.Process(envoy.pid)) == {port}
            assert [each.laddr for each in psutil.Process(envoy.pid).net_connections("unix") if each.laddr] == []
        finally:
            envoy.kill()


def test_only_our_user_can_enter_the_folder_of_the_admin_page(edge):
    path = admin_socket(edge.settings)
    for each, mode in ((path, 0o600), (path.parent, 0o700)):
        assert (stat.S_IMODE(each.stat().st_mode), each.stat().st_uid) == (mode, os.geteuid())
    assert ask(edge.settings, "GET", "/ready") == b"LIVE\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_another_user_cannot_connect_to_the_admin_page(edge):
    command = [sys.executable, "-c", CONNECT, str(admin_socket(edge.settings))]
    assert subprocess.run([*command, "0"], check=False).returncode == 0
    refused = subprocess.run([*command, str(NOBODY)], check=False, capture_output=True, text=True)
    assert "PermissionError" in refused.stderr


def test_a_second_edge_on_the_same_port_is_refused_and_the_first_keeps_the_admin_page(edge):
    second = Up(edge.settings, edge.folder / "second", command="edge")
    assert second.until_ended() == 1
    assert f"runs on port {edge.settings.rest_port}" in second.logs
    assert ask(edge.settings, "GET", "/ready") == b"LIVE\n"


# ---------------------------------------------------------------- misuse of the admin page


@pytest.fixture
def orders(edge):
    """A client that orders all the time, with a new connection per order.

    Yields the status of each response, or None if nothing listened.
    """
    statuses, stop = [], threading.Event()

    def order():
        while not stop.is_set():
            try:
                statuses.append(httpx.post(f"{edge.rest_url}{ROUTE}", json={"numbers": ["+14155550100"]}).status_code)
            except httpx.ConnectError:
                statuses.append(None)
            stop.wait(0.02)

    thread = threading.Thread(target=order)
    thread.start()
    yield statuses
    stop.set()
    thread.join()
    assert set(statuses) <= {200, 503, None}


def test_a_health_check_failed_by_hand_is_restored_and_no_order_fails(edge, orders):
    before = envoy(edge)
    ask(edge.settings, "POST", "/healthcheck/fail")
    wait_until(lambda: "failed its health check" in edge.logs and health(edge) == 200)
    assert envoy(edge) == before
    assert set(orders) == {200}


@pytest.mark.parametrize("path", ["/drain_listeners", "/quitquitquit"])
def test_an_edge_stopped_by_hand_is_restarted_and_sells_again(edge, orders, path):
    before = envoy(edge)
    ask(edge.settings, "POST", path)
    wait_until(lambda: not before.is_running() and health(edge) == 200)
    placed = orders.count(200)
    wait_until(lambda: orders.count(200) >= placed + 10)


def test_an_edge_that_nobody_misuses_is_not_changed(edge, orders):
    before = envoy(edge)
    time.sleep(3)
    assert envoy(edge) == before
    assert set(orders) == {200}
    assert "Envoy" not in edge.logs
