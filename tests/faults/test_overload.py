"""More orders than a worker accepts: it refuses the others at once, and sends the time to try again after."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from sqlalchemy import text

from tests.support.callers import TIMEOUT_SECONDS, Grpc, Rest, failure
from tests.support.customer import Customer
from tests.support.stack import Up, local_settings, wait_until

QUEUE_ORDERS_MAX = 5
ORDERS = 30


@pytest.fixture
def small(open_path, database):
    """A service whose only worker accepts few orders at a time."""
    limits = {"workers": 1, "orders_in_progress_max": QUEUE_ORDERS_MAX}
    settings = local_settings(open_path / ".data", database_url=database.url, **limits)
    with Up(settings, open_path, "--no-demo") as up:
        yield up.until_ready()


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_orders_beyond_the_queue_are_refused_at_once_with_retry_after(small, database, transport):
    customer = Customer.open(database.engine)
    numbers = customer.numbers(ORDERS)
    with (
        httpx.Client(base_url=small.rest_url, timeout=TIMEOUT_SECONDS) as client,
        grpc.insecure_channel(f"127.0.0.1:{small.settings.grpc_port}") as channel,
        ThreadPoolExecutor(ORDERS) as threads,
    ):
        call = Rest(client) if transport == "rest" else Grpc(channel)
        assert call(customer.key, numbers=customer.numbers(1)).status == 200  # caches the key
        # Orders that the worker accepts wait for this lock.
        lock = database.engine.connect()
        lock.execute(text("SELECT FROM organization FOR UPDATE"))
        futures = [threads.submit(call, customer.key, numbers=[number]) for number in numbers]
        refused = wait_for_responses(futures, ORDERS - QUEUE_ORDERS_MAX)
        # A full queue of orders refuses no read.
        assert call.rpc("SearchNumbers", customer.key).status == call.rpc("ListNumbers", customer.key).status == 200
        lock.close()
        placed = [future.result() for future in futures if future.result() not in refused]
    for response in refused:
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert response.body == failure("UNAVAILABLE", "service unavailable", response.request_id)
    assert [response.status for response in placed] == [200] * QUEUE_ORDERS_MAX
    assert len(customer.owned()) == QUEUE_ORDERS_MAX + 1


def wait_for_responses(futures, count):
    """Wait until at least `count` calls have a response, and return the responses."""
    wait_until(lambda: sum(future.done() for future in futures) >= count)
    return [future.result() for future in futures if future.done()]
