"""Invented keys: a worker looks up few of them in the database, and serves known keys meanwhile."""

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

INVENTED_KEYS = 500
TRANSACTIONS = text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")


@pytest.fixture
def cautious(open_path, database):
    """A service whose only worker looks up few new keys per second."""
    settings = local_settings(open_path / ".data", database_url=database.url, workers=1, unknown_keys_per_second=1)
    with Up(settings, open_path, "--no-demo") as up:
        yield up.until_ready()


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_invented_keys_cause_few_look_ups_and_delay_no_known_key(cautious, database, transport):
    customer = Customer.open(database.engine)
    with (
        httpx.Client(base_url=cautious.rest_url, timeout=TIMEOUT_SECONDS) as client,
        grpc.insecure_channel(f"127.0.0.1:{cautious.settings.grpc_port}") as channel,
    ):
        call = Rest(client) if transport == "rest" else Grpc(channel)
        assert call(customer.key, numbers=customer.numbers(1)).status == 200
        before = transactions(database)
        responses = [call(keys.new_key(UUID(int=i)), numbers=[]) for i in range(INVENTED_KEYS)]
        looked_up = transactions(database) - before
        assert call(customer.key, numbers=customer.numbers(1)).status == 200
    assert {response.status for response in responses} == {401, 429}
    refused = next(response for response in responses if response.status == 429)
    assert refused.body == failure("RATE_LIMITED", "rate limited", refused.request_id)
    assert refused.headers["retry-after"] == "1"
    assert looked_up < INVENTED_KEYS / 2


def transactions(database):
    """How many transactions the database has had."""
    time.sleep(1.5)  # connections report theirs once per second
    with database.engine.connect() as connection:
        return connection.execute(TRANSACTIONS).scalar_one()
