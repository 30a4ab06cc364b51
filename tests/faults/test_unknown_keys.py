"""Keys that somebody makes up: a worker asks the database about few of them, and serves those it knows."""

import time
from uuid import UUID

import grpc
import httpx
import pytest
from sqlalchemy import text

from server import keys
from tests.support.callers import TIMEOUT_SECONDS, Grpc, Rest, failure
from tests.support.customer import Customer
from tests.support.stack import Up, local_settings

MADE_UP = 500
TRANSACTIONS = text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")


@pytest.fixture
def wary(open_path, database):
    """A service whose one worker looks up few new keys a second."""
    settings = local_settings(open_path / ".data", database_url=database.url, workers=1, new_keys_per_second=1)
    with Up(settings, open_path, "--no-demo") as up:
        yield up.until_ready()


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_made_up_keys_cost_few_look_ups_and_hold_up_no_known_key(wary, database, transport):
    customer = Customer.open(database.engine)
    with (
        httpx.Client(base_url=wary.rest_url, timeout=TIMEOUT_SECONDS) as client,
        grpc.insecure_channel(f"127.0.0.1:{wary.settings.grpc_port}") as channel,
    ):
        call = Rest(client) if transport == "rest" else Grpc(channel)
        assert call(customer.key, numbers=customer.numbers(1)).status == 200
        before = transactions(database)
        answers = [call(keys.new_key(UUID(int=i)), numbers=[]) for i in range(MADE_UP)]
        looked_up = transactions(database) - before
        assert call(customer.key, numbers=customer.numbers(1)).status == 200
    assert {answer.status for answer in answers} == {401, 429}
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.body == failure("RATE_LIMITED", "rate limited", refused.request_id)
    assert refused.headers["retry-after"] == "1"
    assert looked_up < MADE_UP / 2


def transactions(database):
    """Of all connections so far, which report them a little later."""
    time.sleep(1.5)
    with database.engine.connect() as connection:
        return connection.execute(TRANSACTIONS).scalar_one()
