"""Somebody new: from the banner to the page, a sale there, the sale on the dashboard, and its trace in both logs."""

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import httpx
import pytest
import yaml
from playwright.sync_api import expect

from tests.support.browser import Reader, docs_url, needs_chromium, response_to, running_browser
from tests.support.databases import open_folder
from tests.support.otlp import otlp_receiver
from tests.support.stack import Up, free_ports, local_settings, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
ORDERS = "/v1/phone-numbers/orders"
GRAFANA = {"$__rate_interval": "1m", "$worker": ".*", "$edge": ".*"}

pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not which("prometheus"), reason="no Prometheus: apt-get install prometheus"),
]


@contextmanager
def running_prometheus(folder, settings):
    """A Prometheus with our rules, that reads the pages of this service every second. Yields its query function."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus/rules.yml")]
    ports = {"ordernumbers": settings.metrics_ports, "ordernumbers-edge": [settings.edge_metrics_port]}
    config["scrape_configs"] = [
        job | {"static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports[job["job_name"]]]}]}
        for job in config["scrape_configs"]
        if job["job_name"] in ports
    ]
    file, port = folder / "prometheus.yml", free_ports(1)
    file.write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]

    def query(expression):
        """The values of an expression now, by their labels."""
        response = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression})
        assert response.json()["status"] == "success", response.text
        return [float(each["value"][1]) for each in response.json()["data"]["result"]]

    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log) as process,
    ):
        try:
            wait_until(lambda: _is_ready(port), is_hopeless=lambda: process.poll() is not None)
            yield query
        finally:
            process.terminate()


def _is_ready(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


def dashboard():
    """The queries of the dashboard by the titles of their panels, as Grafana sends them."""
    panels = json.loads((DEPLOY / "grafana/ordernumbers.json").read_text())["panels"]
    for panel in panels:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in GRAFANA.items():
                expression = expression.replace(name, value)
            yield panel["title"], expression


def log_lines(up, request_id):
    return [json.loads(line) for line in up.logs.splitlines() if request_id in line]


def test_a_sale_from_the_page_is_on_the_dashboard_and_its_trace_is_in_both_logs(tmp_path):
    with (
        open_folder() as folder,
        otlp_receiver() as receiver,
        Up(local_settings(folder / ".data", workers=1, otlp_endpoint=receiver.endpoint, trace_ratio=1), folder) as up,
        running_prometheus(tmp_path, up.until_ready().settings) as query,
        running_browser() as browser,
    ):
        wait_until(lambda: query("sum(up)") == [2])
        reader = Reader(browser, docs_url(up.banner))
        reader.enter_key((up.settings.data_dir / "demo.key").read_text().strip())
        ids = []
        reader.page.on("response", lambda response: ids.append(response.headers.get("x-request-id")))
        with reader.call(ORDERS) as form:
            expect(response_to(form, "200 OK")).to_contain_text("+1415555")
        request_id = ids[-1]

        (sold,) = [each for _, each in dashboard() if "ordernumbers_numbers_sold_total" in each]
        wait_until(lambda: query(sold) and query(sold)[0] > 0)
        for title, expression in dashboard():
            assert query(expression) is not None, title

        # Envoy writes its lines every few seconds.
        wait_until(lambda: len(log_lines(up, request_id)) == 2)
        (trace_id,) = {line["trace_id"] for line in log_lines(up, request_id)}
        wait_until(lambda: {"ingress", "transaction"} <= {span.name for span in receiver.of_trace(trace_id)})
