"""More orders than a worker takes on: the rest are refused at once, and told when to come again."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from sqlalchemy import text

from tests.support.callers import TIMEOUT_SECONDS, Grpc, Rest, failure
from tests.support.customer import Customer
from tests.support.stack import Up, local_settings

QUEUE = 5
ORDERS = 30


@pytest.fixture
def small(open_path, database):
    """A service whose one worker takes on few orders at a time."""
    settings = local_settings(open_path / ".data", database_url=database.url, workers=1, queue_orders_max=QUEUE)
    with Up(settings, open_path, "--no-demo") as up:
        yield up.until_ready()


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_beyond_the_queue_orders_are_refused_at_once_and_told_when_to_come_again(small, database, transport):
    customer = Customer.open(database.engine)
    numbers = customer.numbers(ORDERS)
    with (
        httpx.Client(base_url=small.rest_url, timeout=TIMEOUT_SECONDS) as client,
        grpc.insecure_channel(f"127.0.0.1:{small.settings.grpc_port}") as channel,
        ThreadPoolExecutor(ORDERS) as buyers,
    ):
        call = Rest(client) if transport == "rest" else Grpc(channel)
        assert call(customer.key, numbers=customer.numbers(1)).status == 200  # the key is known
        lock = database.engine.connect()
        lock.execute(text("SELECT FROM organization FOR UPDATE"))
        answers = [buyers.submit(call, customer.key, numbers=[number]) for number in numbers]
        refused = until_answered(answers, ORDERS - QUEUE)
        lock.close()
        placed = [answer.result() for answer in answers if answer.result() not in refused]
    for answer in refused:
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.body == failure("UNAVAILABLE", "service unavailable", answer.request_id)
    assert [answer.status for answer in placed] == [200] * QUEUE
    assert len(customer.owned()) == QUEUE + 1


def until_answered(answers, count):
    """The first so many results; while a lock holds up those that were taken on."""
    done = []
    while len(done) < count:
        done = [answer.result() for answer in answers if answer.done()]
    return done
