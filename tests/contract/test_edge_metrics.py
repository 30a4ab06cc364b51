"""Envoy's metrics: one page on a port of its own, and nothing else of the admin page."""

import asyncio
import socket
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import trustme

from server.run import edge
from tests.support.callers import ROUTE
from tests.support.edge import running_edge, running_server, sell, wait_until_ready
from tests.support.metrics import Metrics, page
from tests.support.stack import local_settings, wait_until

ORDER = {"numbers": ["+14155550100"]}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The settings of a running edge."""
    settings = local_settings(tmp_path_factory.mktemp("edge"), workers=1)
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        yield settings


def of_edge(settings):
    return Metrics([settings.edge_metrics_port])


def responses(settings, of_class):
    labels = {"envoy_http_conn_manager_prefix": "edge", "envoy_response_code_class": of_class}
    return of_edge(settings).total("envoy_http_downstream_rq_xx", **labels)


def test_the_page_counts_responses(settings):
    before = responses(settings, "2")
    assert httpx.post(f"http://127.0.0.1:{settings.rest_port}{ROUTE}", json=ORDER).status_code == 200
    wait_until(lambda: responses(settings, "2") == before + 1)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/quitquitquit"),
        ("POST", "/metrics"),
        ("POST", "/healthcheck/fail"),
        ("GET", "/"),
        ("GET", "/stats"),
        ("GET", "/stats/prometheus"),
        ("GET", "/config_dump"),
        ("GET", "/metrics/"),
        ("GET", "/metrics/../config_dump"),
        ("GET", "//config_dump"),
        ("GET", "/metrics?filter=x"),
        ("GET", "/metrics?"),
        ("GET", "/metrics%3Ffilter=x"),
        ("GET", "/metrics%2F..%2Fconfig_dump"),
    ],
)
def test_nothing_else_of_the_admin_page_can_be_reached(settings, method, path):
    url = f"http://127.0.0.1:{settings.edge_metrics_port}"
    with httpx.Client(base_url=url) as client:
        response = client.request(method, "/", extensions={"target": path.encode()})
    assert (response.status_code, response.text) == (404, "not found\n")
    assert asyncio.run(edge.is_ready(settings))


def test_metrics_can_be_off(tmp_path):
    settings = local_settings(tmp_path, workers=1)
    off = settings.model_copy(update={"edge_metrics_port": 0})
    with running_server(settings.grpc_port, sell), running_edge(off), pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{settings.edge_metrics_port}/metrics")


def test_the_page_can_be_reached_when_the_edge_has_all_its_connections(tmp_path):
    settings = local_settings(tmp_path, workers=1, edge_connections_max=10)
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        sockets = [socket.create_connection(("127.0.0.1", settings.rest_port)) for _ in range(15)]
        refused = {"envoy_listener_address": f"127.0.0.1_{settings.rest_port}"}
        name = "envoy_listener_downstream_global_cx_overflow"
        wait_until(
            lambda: of_edge(settings).total(name, **refused) > 0, report=lambda: page(settings.edge_metrics_port)
        )
        for each in sockets:
            each.close()


def test_the_page_can_be_reached_until_a_draining_edge_has_finished_its_calls(tmp_path):
    settings = local_settings(tmp_path, workers=1, drain_ms=500)
    url = f"http://127.0.0.1:{settings.rest_port}"
    started, may_finish = threading.Event(), threading.Event()

    def wait_then_sell(request, context):
        started.set()
        assert may_finish.wait(20)
        return sell(request, context)

    def listens():
        with suppress(OSError), socket.create_connection(("127.0.0.1", settings.rest_port)):
            return True
        return False

    with running_server(settings.grpc_port, wait_then_sell), running_edge(settings) as envoy:
        wait_until_ready(settings)
        ordering = threading.Thread(target=lambda: httpx.post(f"{url}{ROUTE}", json=ORDER, timeout=20))
        ordering.start()
        started.wait(20)
        draining = threading.Thread(target=lambda: asyncio.run(edge.drain(settings)))
        draining.start()
        wait_until(lambda: not listens())
        assert of_edge(settings).total("envoy_http_downstream_rq_active", envoy_http_conn_manager_prefix="edge") == 1
        may_finish.set()
        ordering.join()
        draining.join()
        assert envoy.wait(20) == 0


def test_the_page_has_the_days_until_the_certificate_ends(tmp_path):
    files = {"tls_cert": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
    issued = trustme.CA().issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(days=9, hours=1))
    issued.cert_chain_pems[0].write_to_path(files["tls_cert"])
    issued.private_key_pem.write_to_path(files["tls_key"])
    settings = local_settings(tmp_path, workers=1, **files)
    with running_edge(settings):
        wait_until(lambda: of_edge(settings).total("envoy_server_days_until_first_cert_expiring") == 9)


def test_the_page_can_be_reached_when_the_memory_of_the_edge_is_full(tmp_path, monkeypatch):
    render = edge.edge_config

    def with_full_memory(settings):
        config = render(settings)
        config["overload_manager"]["resource_monitors"][1]["typed_config"]["max_heap_size_bytes"] = 1
        return config

    monkeypatch.setattr(edge, "edge_config", with_full_memory)
    settings = local_settings(tmp_path, workers=1)
    with running_edge(settings):
        full = "envoy_overload_envoy_overload_actions_reject_incoming_connections_active"
        wait_until(lambda: of_edge(settings).total(full) == 1)
        assert of_edge(settings).total("envoy_server_live") == 1
