"""deploy/: Prometheus accepts its rules, they fire when they should, and every metric in it exists."""

import json
import re
import subprocess
from pathlib import Path
from shutil import which

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import FAILURES, FAMILIES
from tests.support.callers import ROUTE
from tests.support.metrics import names, page
from tests.support.stack import COMMAND, environment_of, wait_until

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
DOCUMENT = (ROOT / "docs/metrics.md").read_text()
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
DASHBOARD = json.loads((ROOT / "deploy/grafana/ordernumbers.json").read_text())
GRAFANA = {"$__rate_interval": "5m", "$worker": ".*", "$edge": ".*"}
OF_PROMQL = {"by", "without", "on", "ignoring", "and", "or", "unless", "bool", "offset"}
OF_PROMETHEUS = {"up"}

needs_promtool = pytest.mark.skipif(
    not which("promtool"), reason="promtool is not installed: apt-get install prometheus"
)


def promtool(*words, folder=PROMETHEUS):
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def expressions():
    """Every query of the dashboard, as Prometheus gets it."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in GRAFANA.items():
                expression = expression.replace(name, value)
            yield expression


def variables():
    """The metrics that the dashboard's own variables come from."""
    queries = [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return {re.match(r"label_values\((\w+)", query)[1] for query in queries}


def names_in(expression):
    """The metrics that an expression names."""
    # Without texts, labels, durations and groups, the names that are left are metrics, functions or words of PromQL.
    for other in (r'"[^"]*"', r"\{[^}]*\}", r"\[[^]]*\]", r"\b(?:by|without|on|ignoring)\s*\([^)]*\)"):
        expression = re.sub(other, " ", expression)
    return set(re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", expression)) - OF_PROMQL


def documented():
    """The labels of each metric of ours, from the tables."""
    rows = [line.split("|") for line in DOCUMENT.splitlines() if line.startswith("| `ordernumbers_")]
    return {name.strip(" `"): set(re.findall(r"`(\w+)`", labels)) for _, name, labels, *_ in rows}


@pytest.fixture(scope="module")
def check_file(service, tmp_path_factory):
    file = tmp_path_factory.mktemp("check") / "ordernumbers.prom"
    command = [COMMAND, "check", "--metrics-file", file]
    subprocess.run(command, env=environment_of(service.settings), capture_output=True, check=False)
    return file.read_text()


@pytest.fixture(scope="module")
def live(service, check_file):
    """The names that workers, an edge and a check show."""
    settings = service.settings
    of_check = set(re.findall(r"^(\w+) ", check_file, re.MULTILINE))
    assert httpx.post(f"{service.rest_url}{ROUTE}", json={}).status_code == 401
    # Envoy adds up its histograms every few seconds.
    wait_until(lambda: "envoy_http_downstream_rq_time_bucket" in names(settings.edge_metrics_port))
    of_workers = set.union(*map(names, settings.metrics_ports))
    return of_check | of_workers | names(settings.edge_metrics_port)


def test_the_names_in_an_expression_are_found():
    expression = (
        'sum by (le, code) (rate(a_total{b="c_total"}[5m])) / on (d) e:f:g > bool 0.5 and h unless absent(i) or 1e3'
    )
    assert names_in(expression) == {"a_total", "e:f:g", "h", "i"}


def test_every_metric_of_the_rules_exists(live):
    used = set().union(*(names_in(rule["expr"]) for rule in RULES))
    assert len(used) > 15
    assert used - live - RECORDED - OF_PROMETHEUS == set()


def test_the_rules_and_the_workers_have_the_same_codes_of_failures():
    codes = {found for rule in RULES for found in re.findall(r'code=~"([^"]+)"', rule["expr"])}
    assert codes == {"|".join(FAILURES)}


def test_every_metric_of_the_dashboard_exists(live):
    used = variables().union(*map(names_in, expressions()))
    assert len(used) > 30
    assert used - live - RECORDED == set()


def test_the_page_of_the_docs_has_exactly_the_metrics_and_labels_that_are_shown(service, check_file, live):
    shown = {}
    families = text_string_to_metric_families(check_file + "".join(map(page, service.settings.metrics_ports)))
    for family in families:
        for sample in family.samples:
            name = sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            if name.startswith("ordernumbers_"):
                shown.setdefault(name, set()).update(sample.labels.keys() - {"le"})
    assert documented() == shown


def test_the_page_of_the_docs_has_every_alert_with_its_severity():
    rows = [line.strip("| ").split(" | ")[:2] for line in DOCUMENT.splitlines() if line.startswith("| `OrderNumbers")]
    expected = [(f"`{rule['alert']}`", rule["labels"]["severity"]) for rule in RULES if "alert" in rule]
    assert sorted(map(tuple, rows)) == sorted(expected)


def test_the_metrics_of_the_edge_that_the_docs_name_exist(live):
    named = set(re.findall(r"`(envoy_\w+)`", DOCUMENT)) - {"envoy_response_code_class"}
    assert len(named) > 5
    assert named - {name.removesuffix("_bucket") for name in live} == set()


def test_the_dashboard_has_every_metric_of_a_worker():
    used = set().union(*map(names_in, expressions()))
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in used}
    assert {family.name for family in FAMILIES} - shown == set()


def test_every_alert_has_a_severity_and_a_summary_and_a_test():
    tested = (PROMETHEUS / "rules_test.yml").read_text()
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert rule["annotations"]["summary"]
            assert f"alertname: {rule['alert']}\n    eval_time" in tested


@needs_promtool
def test_prometheus_accepts_the_example_and_the_rules():
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml")


@needs_promtool
def test_the_alerts_fire_when_they_should_and_only_then():
    promtool("test", "rules", "rules_test.yml")


@needs_promtool
def test_prometheus_understands_every_query_of_the_dashboard(tmp_path):
    rules = [{"record": f"dashboard:query:{i}", "expr": each} for i, each in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "rules.yml", folder=tmp_path)
