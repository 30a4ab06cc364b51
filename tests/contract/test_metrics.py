"""The metrics of real workers: what calls of each kind count, and who gets the page."""

import socket
import subprocess
from contextlib import ExitStack
from shutil import which

import httpx
import pytest

from server import keys
from server.metrics import FAILURES
from server.rpc.auth import required_scope
from server.run.metrics_page import REQUESTS_MAX
from server.scopes import SCOPES
from tests.support.callers import ROUTE, RPCS, SERVICE
from tests.support.metrics import Metrics, page, samples
from tests.support.stack import wait_until


@pytest.fixture
def metrics(service):
    return Metrics(service.settings.metrics_ports)


@pytest.fixture
def grows(metrics):
    """A function that returns by how much samples grow while `work` runs. Some grow right after the response."""

    def growth(work, expected, name, **labels):
        totals = [metrics.total(name, **labels)]
        work()

        def has_grown():
            totals.append(metrics.total(name, **labels))
            return totals[-1] - totals[0] >= expected

        wait_until(has_grown)
        return totals[-1] - totals[0]

    return growth


def code_of(response):
    return "OK" if response.status == 200 else response.body["error"]["code"]


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize("rpc", RPCS)
def test_every_call_is_counted_once_with_its_method_and_code(grows, metrics, customer, grpc_direct_call, rpc):
    scope = required_scope(SERVICE.methods_by_name[rpc])
    (other_scope,) = set(SCOPES) - {scope}
    codes = []

    def call(key):
        return lambda: codes.append(code_of(grpc_direct_call.rpc(rpc, key)))

    call(customer.key)()
    for key, code in ((customer.key, codes[0]), (customer.new_key(other_scope), "FORBIDDEN")):
        assert grows(call(key), 1, "ordernumbers_calls_total", method=rpc, code=code) == 1
    assert codes == [codes[0], codes[0], "FORBIDDEN"]
    calls = metrics.total("ordernumbers_calls_total", method=rpc)
    assert metrics.total("ordernumbers_call_duration_seconds_count", method=rpc) == calls


@pytest.mark.parametrize("code", FAILURES)
def test_a_failure_that_never_happened_is_zero_from_the_start(service, code):
    """Otherwise the first ones of a worker are no increase for Prometheus."""
    for port in service.settings.metrics_ports:
        calls = [each for each in samples([port]) if each.name == "ordernumbers_calls_total"]
        assert {each.labels["method"] for each in calls if each.labels["code"] == code} == set(RPCS)


def test_a_replayed_response_has_a_code_of_its_own(grows, customer, rest):
    (number,) = customer.numbers(1)
    rest(customer.key, numbers=[number], idempotency_key="k")
    replay = {"method": "OrderNumbers", "code": "REPLAYED"}

    def again():
        rest(customer.key, numbers=[number], idempotency_key="k")

    assert grows(again, 1, "ordernumbers_calls_total", **replay) == 1


def test_a_duration_is_in_seconds(service, customer, grows):
    def slow_order():
        (number,) = customer.numbers(1)
        with service.database.engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT FROM phone_number WHERE number = '{number}' FOR UPDATE")
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{service.rest_url}{ROUTE}",
                    json={"numbers": [number]},
                    headers={"authorization": f"Bearer {customer.key}"},
                    timeout=0.3,
                )

    seconds = grows(slow_order, 0.29, "ordernumbers_call_duration_seconds_sum", method="OrderNumbers")
    assert 0.29 <= seconds < 60


# ---------------------------------------------------------------- what is sold


def test_placed_orders_and_sold_numbers_are_counted(grows, customer, rest):
    numbers = customer.numbers(5)

    def orders():
        rest(customer.key, numbers=numbers[:3])
        rest(customer.key, numbers=numbers[:4])  # refused
        rest.rpc("BulkOrderNumbers", customer.key, quantity=2, area_code=numbers[0][2:5])

    assert grows(orders, 2, "ordernumbers_orders_placed_total") == 2
    numbers = customer.numbers(5)
    assert grows(orders, 5, "ordernumbers_numbers_sold_total") == 5


def test_an_order_waits_in_its_queue_and_is_part_of_a_batch(grows, customer, rest):
    def order():
        rest(customer.key, numbers=customer.numbers(1))

    assert grows(order, 1, "ordernumbers_batch_orders_sum") == 1
    assert grows(order, 1, "ordernumbers_queue_wait_seconds_count", queue="orders") == 1
    for round_trip in ("read", "commit"):  # the health checks of two workers have them too
        assert grows(order, 1, "ordernumbers_round_trip_seconds_count", round_trip=round_trip) >= 1


def test_a_hold_waits_in_the_queue_of_other_writes(grows, customer, rest):
    def hold():
        rest.rpc("HoldNumbers", customer.key, numbers=customer.numbers(1))

    assert grows(hold, 1, "ordernumbers_queue_wait_seconds_count", queue="writes") == 1


def test_what_waits_or_runs_is_shown_with_its_limit(metrics, service):
    settings = service.settings
    limits = {
        "orders": settings.orders_in_progress_max,
        "writes": settings.writes_in_progress_max,
        "reads": settings.reads_in_progress_max,
    }
    for kind, limit in limits.items():
        assert metrics.total("ordernumbers_in_progress", kind=kind) == 0
        assert metrics.total("ordernumbers_in_progress_max", kind=kind) == limit * settings.workers
    for queue in ("orders", "retries", "writes"):
        assert metrics.total("ordernumbers_queue_length", queue=queue) == 0


# ---------------------------------------------------------------- keys


def test_keys_are_counted_by_how_they_were_found(grows, customer, grpc_direct_call):
    key = customer.new_key("numbers:read")

    def call(key):
        return lambda: grpc_direct_call.rpc("ListNumbers", key)

    assert grows(call(key), 1, "ordernumbers_key_lookups_total", result="found") == 1
    assert grows(call(key), 1, "ordernumbers_key_lookups_total", result="cached") == 1
    assert grows(call(keys.new_key(customer.id)), 1, "ordernumbers_key_lookups_total", result="unknown") == 1


# ---------------------------------------------------------------- the page


def test_a_worker_says_which_version_runs_and_whether_its_database_is_up(metrics, service):
    (build, *_) = [each for each in samples(service.settings.metrics_ports) if each.name == "ordernumbers_build_info"]
    assert set(build.labels) == {"version", "python"}
    assert build.value == 1
    assert metrics.total("ordernumbers_database_up") == service.settings.workers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/metrics/"),
        ("POST", "/healthz"),
        ("GET", "/favicon.ico"),
        ("POST", "/metrics"),
        ("OPTIONS", "/metrics"),
    ],
)
def test_everything_else_on_the_port_is_not_found(service, method, path):
    response = httpx.request(method, f"http://127.0.0.1:{service.settings.metrics_port}{path}")
    assert (response.status_code, response.text) == (404, "not found\n")


def test_no_organization_and_no_key_is_a_label(service, customer, rest):
    rest(customer.key, numbers=customer.numbers(1))
    for port in service.settings.metrics_ports:
        text = page(port)
        assert str(customer.id) not in text
        assert str(customer.key_id) not in text
        assert customer.key not in text


def test_a_silent_client_does_not_keep_others_from_the_page(service):
    address = ("127.0.0.1", service.settings.metrics_port)
    with socket.create_connection(address) as silent, socket.create_connection(address):
        silent.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert "ordernumbers_calls_total" in page(service.settings.metrics_port)


def test_many_slow_clients_do_not_keep_others_from_the_page(service):
    """Each has begun a request, as one has that sends a byte a second. A probe still gets its response."""
    address = ("127.0.0.1", service.settings.metrics_port)
    with ExitStack() as slow:
        for _ in range(5 * REQUESTS_MAX):
            slow.enter_context(socket.create_connection(address)).sendall(b"GET /metrics HTTP/1.1\r\n")
        assert httpx.get(f"http://127.0.0.1:{address[1]}/healthz").text == "ok\n"
        assert "ordernumbers_calls_total" in page(address[1])


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=abc", "application/openmetrics-text;version=1.0.0", "a/b;;q", ""]
)
def test_the_page_is_the_same_text_whatever_is_accepted(service, accept):
    response = httpx.get(f"http://127.0.0.1:{service.settings.metrics_port}/metrics", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")


@pytest.mark.skipif(not which("promtool"), reason="promtool is not installed: apt-get install prometheus")
def test_the_page_follows_the_rules_of_prometheus(service, customer, rest):
    rest(customer.key, numbers=customer.numbers(1))
    text = page(service.settings.metrics_port)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
