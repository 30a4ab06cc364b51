"""Reads have limits of their own: they do not wait for orders, nor orders for them. And what a read does to a key."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import httpx
import pytest
from sqlalchemy import text

from tests.support.callers import TIMEOUT_SECONDS, Grpc, Rest, failure
from tests.support.customer import Customer
from tests.support.inventory import all_rows, assert_invalid, assert_refused, new_area_code, stock
from tests.support.stack import Up, local_settings, wait_until

LIMIT = 4
UNAVAILABLE = (503, "UNAVAILABLE", "service unavailable")


@pytest.fixture
def small(open_path, database):
    """A service whose only worker admits few orders, few other writes and few reads at a time."""
    limits = dict.fromkeys(("orders_in_progress_max", "writes_in_progress_max", "reads_in_progress_max"), LIMIT)
    settings = local_settings(open_path / ".data", database_url=database.url, workers=1, **limits)
    with Up(settings, open_path, "--no-demo") as up:
        yield up.until_ready()


@pytest.fixture(params=["REST", "gRPC"])
def small_call(small, request):
    if request.param == "REST":
        with httpx.Client(base_url=small.rest_url, timeout=TIMEOUT_SECONDS) as client:
            yield Rest(client)
    else:
        with grpc.insecure_channel(f"127.0.0.1:{small.settings.grpc_port}") as channel:
            yield Grpc(channel)


class Made:
    """A customer, and one thing of each kind that it can read."""

    def __init__(self, call, engine):
        self.customer = customer = Customer.open(engine)
        self.area, self.key = new_area_code(), customer.key
        stock(customer, self.area, 3)
        (self.row,) = call(self.key, numbers=customer.numbers(1), idempotency_key="key").body["data"]
        self.order_id = call.rpc("FindOrder", self.key, idempotency_key="key").body["meta"]["order_id"]
        bulk = call.rpc("BulkOrderNumbers", self.key, quantity=1, area_code=self.area)
        self.bulk_id = bulk.body["data"]["order_id"]
        self.hold_id = call.rpc("HoldNumbers", self.key, numbers=customer.numbers(1)).body["data"]["id"]
        self.number = customer.numbers(1)

    def reads(self):
        """A request for each call that only reads."""
        return [
            ("SearchNumbers", {"area_code": self.area}),
            ("OrderNumbers", {"numbers": self.number, "validate_only": True}),
            ("GetBulkOrder", {"id": self.bulk_id}),
            ("GetOrder", {"id": self.order_id}),
            ("FindOrder", {"idempotency_key": "key"}),
            ("GetHold", {"id": self.hold_id}),
            ("ListNumbers", {}),
            ("GetNumber", {"id": self.row["id"]}),
        ]


@contextmanager
def filled(engine, lock, rpc, call, key, requests):
    """Send calls that wait for a lock of another transaction, until one more is refused."""
    with ThreadPoolExecutor(len(requests)) as threads, engine.connect() as other:
        other.execute(text(lock))
        futures = [threads.submit(call.rpc, rpc, key, **request) for request in requests]
        try:
            wait_until(lambda: any(future.done() for future in futures))
            refused = [future.result() for future in futures if future.done()]
            yield refused
        finally:
            other.rollback()
            responses = [future.result() for future in futures]
    assert [each.status for each in responses if each not in refused] == [200] * LIMIT


LOCK_ORGANIZATIONS = "SELECT FROM organization FOR UPDATE"
LOCK_HOLDS = "LOCK TABLE hold"
"""Of all calls, only those of holds wait for this."""


def test_a_full_order_queue_refuses_orders_and_no_reads(small_call, database):
    made = Made(small_call, database.engine)
    numbers = [{"numbers": made.customer.numbers(1)} for _ in range(LIMIT + 1)]
    with filled(database.engine, LOCK_ORGANIZATIONS, "OrderNumbers", small_call, made.key, numbers) as refused:
        assert_refused(refused[0], *UNAVAILABLE)
        for rpc, request in made.reads():
            if rpc != "OrderNumbers":
                assert small_call.rpc(rpc, made.key, **request).status == 200, rpc


def test_other_writes_and_reads_have_limits_of_their_own(small_call, database):
    """Here the writes are full."""
    made = Made(small_call, database.engine)
    holds = [{"numbers": made.customer.numbers(1)} for _ in range(LIMIT + 1)]
    number = made.customer.numbers(1)
    with filled(database.engine, LOCK_HOLDS, "HoldNumbers", small_call, made.key, holds) as refused:
        assert_refused(refused[0], *UNAVAILABLE)
        assert refused[0].headers["retry-after"] == "1"
        for rpc in ("BulkOrderNumbers", "UpdateNumber", "ReleaseNumber"):
            request = {"BulkOrderNumbers": {"quantity": 1}}.get(rpc, {"id": made.row["id"]})
            assert_refused(small_call.rpc(rpc, made.key, **request), *UNAVAILABLE)
        for rpc, request in made.reads():
            if rpc != "GetHold":
                assert small_call.rpc(rpc, made.key, **request).status == 200, rpc
        assert small_call(made.key, numbers=number).status == 200


def test_reads_beyond_their_limit_are_refused_and_no_orders(small_call, database):
    made = Made(small_call, database.engine)
    holds = [{"id": made.hold_id}] * (LIMIT + 1)
    number = made.customer.numbers(1)
    with filled(database.engine, LOCK_HOLDS, "GetHold", small_call, made.key, holds) as refused:
        response = refused[0]
        assert (response.status, response.body) == (503, failure(*UNAVAILABLE[1:], response.request_id))
        assert response.headers["retry-after"] == "1"
        for rpc, request in made.reads():
            if rpc != "OrderNumbers":
                assert_refused(small_call.rpc(rpc, made.key, **request), *UNAVAILABLE)
        assert small_call(made.key, numbers=number).status == 200
        assert small_call.rpc("UpdateNumber", made.key, id=made.row["id"], label="x").status == 200
        assert small_call.rpc("BulkOrderNumbers", made.key, quantity=1, area_code=made.area).status == 200
    for rpc, request in made.reads():
        assert small_call.rpc(rpc, made.key, **request).status == 200, rpc


def test_a_read_that_is_not_done_in_time_is_unavailable(small_call, database):
    made = Made(small_call, database.engine)
    impatient = Grpc(small_call.channel, timeout_seconds=2) if isinstance(small_call, Grpc) else small_call
    before = all_rows(made.customer)
    with database.engine.connect() as other:
        other.execute(text(LOCK_HOLDS))
        assert_refused(impatient.rpc("GetHold", made.key, id=made.hold_id), *UNAVAILABLE)
    # The database does not go on with it.
    assert small_call.rpc("GetHold", made.key, id=made.hold_id).status == 200
    assert all_rows(made.customer) == before


def test_many_reads_share_few_connections(small_call, database):
    """More at the same time than there are connections. Each gets its own result."""
    made = Made(small_call, database.engine)
    requests = made.reads()
    expected = [small_call.rpc(rpc, made.key, **request).body for rpc, request in requests]
    with ThreadPoolExecutor(LIMIT) as threads:
        jobs = [(rpc, request) for _ in range(20) for rpc, request in requests]
        futures = [threads.submit(small_call.rpc, rpc, made.key, **request) for rpc, request in jobs]
        for future, (rpc, _), body in zip(futures, jobs, expected * 20, strict=True):
            if rpc != "SearchNumbers":
                assert future.result().body == body, rpc
            assert future.result().status == 200


# ---------------------------------------------------------------- keys


def test_a_read_keeps_a_revoked_key_no_longer_in_the_cache(small_call, database):
    """A call without a database look-up shows whether the key is cached: it is refused for its request."""
    made = Made(small_call, database.engine)
    cached, gone = {"id": "x"}, 401
    assert_invalid(small_call.rpc("GetNumber", made.key, **cached), 400, id="must be a UUID")
    made.customer.revoke()

    def is_forgotten():
        # If any of these reads renewed the key, it would be cached for ever.
        for rpc, request in made.reads():
            assert small_call.rpc(rpc, made.key, **request).status == 401, rpc
        return small_call.rpc("GetNumber", made.key, **cached).status == gone

    wait_until(is_forgotten)


def test_a_key_that_expires_while_it_is_cached_reads_nothing(small_call, database):
    made = Made(small_call, database.engine)
    expire = text("UPDATE api_key SET expires_at = clock_timestamp() WHERE id = :id")
    with database.engine.begin() as connection:
        connection.execute(expire, {"id": made.customer.key_id})
    for rpc, request in made.reads():
        assert small_call.rpc(rpc, made.key, **request).status == 401, rpc


def test_a_key_that_lost_its_scope_while_it_is_cached_reads_nothing(small_call, database):
    made = Made(small_call, database.engine)
    take = text("UPDATE api_key SET scopes = '{other}' WHERE id = :id")
    with database.engine.begin() as connection:
        connection.execute(take, {"id": made.customer.key_id})
    for rpc, request in made.reads():
        assert small_call.rpc(rpc, made.key, **request).status == 403, rpc


def test_a_key_sees_nothing_of_what_it_asks_for_once_it_is_revoked(small_call, database):
    """Known and unknown things look the same."""
    made = Made(small_call, database.engine)
    made.customer.revoke()
    for id_ in (made.row["id"], made.hold_id):
        bodies = [small_call.rpc("GetNumber", made.key, id=each).body for each in (id_, made.hold_id)]
        for body in bodies:
            body["error"].pop("request_id")
        assert bodies[0] == bodies[1]
