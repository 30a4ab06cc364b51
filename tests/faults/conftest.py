"""The service on a durable PostgreSQL, with a proxy between them that a test can use to break it.

And a customer for tests that send random requests.
"""

from types import SimpleNamespace

import grpc
import pytest

from server.run.embedded.postgres import LOG_FILE, EmbeddedPostgres
from server.store import migrations
from server.store.engine import admin_engine
from tests.support.callers import Grpc
from tests.support.customer import Customer
from tests.support.proxy import Proxy
from tests.support.stack import Up, is_worker, local_settings


@pytest.fixture
def durable_postgres(open_path):
    """A PostgreSQL with fsync, so that a commit survives SIGKILL."""
    with EmbeddedPostgres(open_path / "database") as postgres:
        migrations.upgrade(admin_engine(postgres.url()))
        yield postgres
    log = (open_path / "database" / LOG_FILE).read_text()
    assert "PANIC" not in log


@pytest.fixture
def proxy(durable_postgres):
    with Proxy(durable_postgres.url()) as proxy:
        yield proxy


@pytest.fixture
def engine(durable_postgres):
    return admin_engine(durable_postgres.url())


@pytest.fixture
def behind_proxy(proxy, open_path):
    """Four workers and Envoy, on a database behind the proxy."""
    settings = local_settings(open_path / ".data", database_url=proxy.url, workers=4)
    with Up(settings, open_path, "--no-demo") as up:
        yield up.until_ready()


@pytest.fixture
def workers(behind_proxy):
    """A function that returns the workers that run now."""
    return lambda: [process for process in behind_proxy.processes() if is_worker(process)]


# ---------------------------------------------------------------- random requests


@pytest.fixture
def customer(service):
    return Customer.open(service.database.engine)


@pytest.fixture
def known(service, customer):
    """A customer with numbers, and the values of fields that mean something to the service."""
    free, ordered, held = customer.numbers(50), customer.numbers(20), customer.numbers(5)
    with grpc.insecure_channel(service.grpc_targets[0]) as channel:
        call = Grpc(channel)
        rows = call(customer.key, numbers=ordered, idempotency_key="k").body["data"]
        order_id = call.rpc("FindOrder", customer.key, idempotency_key="k").body["meta"]["order_id"]
        hold_id = call.rpc("HoldNumbers", customer.key, numbers=held).body["data"]["id"]
        cursor = call.rpc("ListNumbers", customer.key, limit=1).body["meta"]["next_cursor"]
        bulk_order = call.rpc("BulkOrderNumbers", customer.key, quantity=1, area_code="900").body["data"]
    rows = [row["id"] for row in rows]
    ids = [*rows, *[order_id, hold_id, bulk_order["order_id"]] * 8]
    proper = {
        "numbers": [[number] for number in free],
        "ids": [[id_] for id_ in ids] + [rows],
        "id": ids,
        "inbound_url": ["https://example.com/x"],
        "status_url": ["https://example.com/x"],
        "label": ["a", "é\U0001f4de"],
        "campaign_id": [str(customer.campaign())],
        "area_code": ["900", "200"],
        "number_type": ["local", "toll_free"],
        "pattern": ["9", "900", "0" * 15],
        "sms_enabled": [True, False],
        "mms_enabled": [True, False],
        "quantity": [1, 2, 100],
        "minutes": [1, 30],
        "limit": [1, 100],
        "mode": ["atomic"],
        "cursor": [cursor],
        "search": ["a", "900", "%", "'", "\\", "ß"],
        "idempotency_key": ["k"],
        "validate_only": [True, False],
    }
    return SimpleNamespace(customer=customer, proper=proper)
