"""Envoy accepts envoy.yaml and the configurations rendered from settings, and runs with them."""

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
import yaml

from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_number_service_pb2_grpc import PhoneNumberServiceStub
from server.config import Settings
from server.errors import OperatorError
from server.run import edge, edge_config
from tests.support.callers import failure
from tests.support.edge import access_log, running_edge, running_server, sell, wait_until_ready
from tests.support.stack import has_ipv6, local_settings, wait_until

ROOT = Path(__file__).parents[2]
ORDER = {"numbers": ["+14155550100"]}


def assert_valid(config_path, settings):
    command = [*edge.envoy_command(settings, config_path), "--mode", "validate"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "OK" in result.stdout


@pytest.fixture
def certificate(tmp_path):
    """A certificate for localhost, as the settings need it."""
    files = {"tls_cert": tmp_path / "tls.crt", "tls_key": tmp_path / "tls.key"}
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(files["tls_cert"])
    authority.cert_pem.write_to_path(files["tls_cert"], append=True)  # so that clients can trust this file
    issued.private_key_pem.write_to_path(files["tls_key"])
    return files


# ---------------------------------------------------------------- the rendered configuration


def test_envoy_yaml_is_valid_without_changes():
    assert_valid(Path("envoy/envoy.yaml"), Settings())


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"bind": "::1", "grpc_bind": "::1", "metrics_bind": "::1", "workers": 16},
        {"edge_metrics_port": 0},
        {"bind": "0.0.0.0", "grpc_bind": "0.0.0.0", "edge_reflection": True},
        {"rest_deadline_ms": 200, "deadline_max_ms": 299_500, "rate_limit_per_key": 1},
        {"drain_ms": 0, "rate_limit_per_key": 1_000_000},
    ],
)
def test_the_rendered_configuration_is_valid(tmp_path, changed):
    settings = Settings(data_dir=tmp_path, **changed)
    assert_valid(edge.write_config(settings), settings)


def test_the_rendered_configuration_with_tls_is_valid(tmp_path, certificate):
    settings = Settings(data_dir=tmp_path, **certificate)
    assert_valid(edge.write_config(settings), settings)


def test_envoy_yaml_is_the_configuration_for_the_default_settings():
    config = edge.edge_config(Settings(workers=1, edge_docs=False, edge_metrics_port=0))
    del config["admin"]  # the page obeys everyone, so those who run Envoy by hand get none
    text = yaml.safe_dump(config, sort_keys=True)
    for folder, name in ((edge_config.EDGE, "envoy"), (edge_config.CONTRACT, "gen/ordernumbers/v1")):
        text = text.replace(str(folder), name)
    assert yaml.safe_load(text) == yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text())


def test_a_server_that_listens_everywhere_is_called_on_loopback():
    for bind, called in (("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3")):
        cluster, _ = edge.edge_config(Settings(grpc_bind=bind, workers=2))["static_resources"]["clusters"]
        (group,) = cluster["load_assignment"]["endpoints"]
        addresses = [each["endpoint"]["address"]["socket_address"] for each in group["lb_endpoints"]]
        assert addresses == [{"address": called, "port_value": port} for port in (50051, 50052)]


def test_the_error_for_a_missing_envoy_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "envoy", None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OperatorError, match=r"ordernumbers\[edge\]"):
        edge.envoy_command(Settings(), Path("envoy.json"))


def test_an_envoy_on_the_path_is_used(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "envoy", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = tmp_path / "envoy"
    found.touch(0o755)
    assert edge.envoy_command(Settings(), Path("envoy.json"))[0] == str(found)


# ---------------------------------------------------------------- the running edge


def test_an_edge_without_servers_listens_but_is_not_ready(tmp_path):
    settings = local_settings(tmp_path, workers=1)
    assert not asyncio.run(edge.is_ready(settings))
    with running_edge(settings):
        assert not asyncio.run(edge.is_ready(settings))


def test_envoy_exits_and_names_the_port_that_is_in_use(tmp_path):
    settings = local_settings(tmp_path, workers=1)
    (tmp_path / "other").mkdir()
    other = local_settings(tmp_path / "other", rest_port=settings.rest_port, workers=1)
    with running_edge(settings):
        command = edge.envoy_command(other, edge.write_config(other))
        second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode != 0
    assert f"127.0.0.1:{settings.rest_port}" in second.stderr
    assert "Address already in use" in second.stderr


def test_tls_serves_http1_http2_and_grpc_on_one_port(tmp_path, certificate):
    settings = local_settings(tmp_path, workers=1, **certificate)
    url = f"https://localhost:{settings.rest_port}/v1/phone-numbers/orders"
    trusted = ssl.create_default_context(cafile=str(settings.tls_cert))
    credentials = grpc.ssl_channel_credentials(settings.tls_cert.read_bytes())
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        for http2 in (False, True):
            with httpx.Client(http2=http2, verify=trusted) as client:
                response = client.post(url, json=ORDER)
                assert response.headers["strict-transport-security"] == "max-age=31536000"
                assert (response.status_code, response.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")
        with grpc.secure_channel(f"localhost:{settings.rest_port}", credentials) as channel:
            assert PhoneNumberServiceStub(channel).OrderNumbers(OrderNumbersRequest(**ORDER)).success


def test_a_connection_without_a_tls_handshake_is_closed(tmp_path, certificate):
    settings = local_settings(tmp_path, workers=1, **certificate)
    with running_edge(settings), socket.create_connection(("127.0.0.1", settings.rest_port), timeout=30) as silent:
        assert silent.recv(1) == b""


def test_an_edge_whose_memory_is_full_refuses_with_retry_after(tmp_path, monkeypatch):
    render = edge.edge_config

    def with_full_memory(settings):
        config = render(settings)
        overload = config["overload_manager"]
        overload["resource_monitors"][1]["typed_config"]["max_heap_size_bytes"] = 1
        overload["actions"] = [each for each in overload["actions"] if each["name"].endswith("stop_accepting_requests")]
        return config

    monkeypatch.setattr(edge, "edge_config", with_full_memory)
    settings = local_settings(tmp_path, workers=1)
    url = f"http://127.0.0.1:{settings.rest_port}/v1/phone-numbers/orders"
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        wait_until(lambda: httpx.post(url, json=ORDER).status_code == 503)
        refused = httpx.post(url, json=ORDER)
        assert refused.json() == failure("UNAVAILABLE", "service unavailable", refused.headers["x-request-id"])
        assert refused.headers["retry-after"] == "1"
        assert (refused.headers["cache-control"], refused.headers["x-content-type-options"]) == ("no-store", "nosniff")
        with grpc.insecure_channel(f"127.0.0.1:{settings.rest_port}") as channel:
            method = "/ordernumbers.v1.PhoneNumberService/OrderNumbers"
            error = refusal(channel, method)
        assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "service unavailable")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_an_edge_bound_to_ipv6_serves(tmp_path):
    settings = local_settings(tmp_path, bind="::1", workers=1)
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        assert httpx.get(f"http://[::1]:{settings.rest_port}/healthz").status_code == 200


@pytest.mark.parametrize("reachable", [False, True])
def test_the_edge_forwards_reflection_only_when_the_setting_allows_it(tmp_path, reachable):
    settings = local_settings(tmp_path, edge_reflection=reachable, workers=1)
    method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        with grpc.insecure_channel(f"127.0.0.1:{settings.rest_port}") as channel:
            error = refusal(channel, method)
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    # The test's server has no reflection either. Its message shows that the call reached it.
    assert ("Method not found" in error.details()) == reachable


def refusal(channel, method):
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(method)(b"")
    return refused.value


def test_a_draining_edge_finishes_the_calls_in_progress_and_exits(tmp_path):
    settings = local_settings(tmp_path, workers=1)
    started, may_finish = threading.Event(), threading.Event()

    def wait_then_sell(request, context):
        started.set()
        assert may_finish.wait(20)
        return sell(request, context)

    async def drain_meanwhile():
        url = f"http://127.0.0.1:{settings.rest_port}"
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            order = asyncio.create_task(client.post("/v1/phone-numbers/orders", json=ORDER))
            await asyncio.to_thread(started.wait, 20)
            draining = asyncio.create_task(edge.drain(settings))
            while (health := await client.get("/healthz")).status_code == 200:
                await asyncio.sleep(0.01)
            may_finish.set()
            response = await order
            await draining
        assert (health.status_code, response.status_code) == (503, 200)
        assert response.headers["connection"] == "close"

    with running_server(settings.grpc_port, wait_then_sell), running_edge(settings) as envoy:
        wait_until_ready(settings)
        asyncio.run(drain_meanwhile())
        assert envoy.wait(20) == 0
        asyncio.run(edge.drain(settings))


def test_the_access_log_has_the_request_id_of_the_response_and_no_query_or_key(tmp_path):
    settings = local_settings(tmp_path, workers=1)
    url = f"http://127.0.0.1:{settings.rest_port}"
    headers = {"authorization": "Bearer am_live_secret"}
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        sold = httpx.post(f"{url}/v1/phone-numbers/orders", json=ORDER, headers=headers)
        spelled = {"authorization": "bearer am_live_secret"}
        sold_too = httpx.post(f"{url}/v1/phone-numbers/orders", json=ORDER, headers=spelled)
        refused = httpx.put(f"{url}/v1/phone-numbers/orders?token=secret", headers=headers)
        with_id = httpx.get(f"{url}/v1/phone-numbers/am_live_secret?token=secret", headers=headers)
        unknown = httpx.request("am_live_secret", f"{url}/v1/am_live_secret", headers=headers)
        lines = access_log(settings, 5)
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/v1/phone-numbers/orders", 200),
        ("POST", "/v1/phone-numbers/orders", 200),
        ("PUT", "/v1/phone-numbers/orders", 405),
        ("GET", "/v1/phone-numbers/*", 400),
        (None, None, 400),
    ]
    responses = (sold, sold_too, refused, with_id, unknown)
    assert [line["request_id"] for line in lines] == [response.headers["x-request-id"] for response in responses]
    assert "secret" not in (settings.data_dir / "access.log").read_text()
