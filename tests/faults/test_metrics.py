"""What the metrics of a worker show while its database or its locks are in the way."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from sqlalchemy import text

from tests.support.callers import Grpc
from tests.support.customer import Customer
from tests.support.metrics import Metrics
from tests.support.proxy import AFTER_COMMIT, BEFORE_COMMIT
from tests.support.stack import Up, has_ipv6, local_settings, wait_until


@pytest.fixture
def serve(proxy, open_path):
    """One worker, on a database behind the proxy."""
    settings = local_settings(open_path / ".data", database_url=proxy.url, workers=1, drain_ms=2500)
    with Up(settings, open_path / "serve", command="serve") as serve:
        serve.until_logged("serving on")
        yield serve


@pytest.fixture
def metrics(serve):
    return Metrics(serve.settings.metrics_ports)


@pytest.fixture
def call(serve):
    with grpc.insecure_channel(f"127.0.0.1:{serve.settings.grpc_port}") as channel:
        yield Grpc(channel)


@pytest.fixture
def customer(engine):
    return Customer.open(engine)


def health(serve):
    response = httpx.get(f"http://127.0.0.1:{serve.settings.metrics_port}/healthz")
    return response.status_code, response.text


async def cut(connection):
    connection.cut()


@pytest.mark.parametrize(("point", "end"), [(AFTER_COMMIT, "carried_out"), (BEFORE_COMMIT, "decided_again")])
def test_an_unknown_outcome_is_counted_by_how_it_ended(proxy, metrics, call, customer, point, end):
    (number,) = customer.numbers(1)
    cut_it = proxy.arm(point, cut)
    assert call(customer.key, numbers=[number]).status == 200
    assert cut_it.is_set()
    assert metrics.total("ordernumbers_unknown_outcomes_total", end=end) == 1
    assert metrics.total("ordernumbers_unknown_outcomes_total") == 1
    assert metrics.total("ordernumbers_failed_attempts_total", reason="unknown") == 1
    assert metrics.total("ordernumbers_retries_total", queue="orders") == 1
    assert metrics.total("ordernumbers_orders_placed_total") == 1
    wait_until(lambda: metrics.total("ordernumbers_unsettled_commits") == 0)


def test_an_outcome_that_stays_unknown_until_the_deadline_is_counted(proxy, serve, metrics, call, customer):
    (number,) = customer.numbers(1)

    async def cut_and_keep_away(connection):
        connection.cut()
        proxy.swallow(True)

    proxy.arm(AFTER_COMMIT, cut_and_keep_away)
    call.timeout_seconds = 3
    assert call(customer.key, numbers=[number]).body["error"]["code"] == "TIMEOUT"
    wait_until(lambda: metrics.total("ordernumbers_unknown_outcomes_total", end="never_known") == 1)
    wait_until(lambda: metrics.total("ordernumbers_database_up") == 0)
    assert health(serve) == (503, "no order could be carried out\n")
    proxy.swallow(False)
    wait_until(lambda: metrics.total("ordernumbers_database_up") == 1)
    assert health(serve) == (200, "ok\n")
    assert metrics.total("ordernumbers_orders_placed_total") == 0


def test_orders_whose_rows_are_locked_are_counted_as_skipped_and_retried(metrics, call, customer, engine):
    locked, *free = customer.numbers(3)
    with ThreadPoolExecutor() as threads:
        with engine.begin() as connection:
            connection.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": locked})
            waiting = threads.submit(call, customer.key, numbers=[locked])
            wait_until(lambda: metrics.total("ordernumbers_lock_skips_total") == 1)
            assert [call(customer.key, numbers=[number]).status for number in free] == [200, 200]
            wait_until(lambda: metrics.total("ordernumbers_retries_total", queue="retries") > 0)
            assert metrics.total("ordernumbers_in_progress", kind="orders") == 1
        assert waiting.result().status == 200
    assert metrics.total("ordernumbers_failed_attempts_total", reason="locked") > 1
    assert metrics.total("ordernumbers_lock_skips_total") == 1
    assert metrics.total("ordernumbers_retries_total", queue="orders") == 1


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_the_page_can_be_at_an_address_of_ipv6(proxy, open_path):
    settings = local_settings(open_path / ".data", database_url=proxy.url, workers=1, metrics_bind="::1")
    with Up(settings, open_path / "serve", command="serve") as serve:
        serve.until_logged("serving on")
        assert "ordernumbers_database_up 1.0" in httpx.get(f"http://[::1]:{settings.metrics_port}/metrics").text


def test_the_page_stays_while_a_worker_drains(serve, metrics):
    serve.process.terminate()
    time.sleep(1)
    assert metrics.total("ordernumbers_database_up") == 1
    assert serve.until_ended() == 0
