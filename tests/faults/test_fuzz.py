"""Random requests. REST responses are in the envelope and never 5xx. gRPC statuses are ours. Memory does not grow."""

import asyncio
import json
import random
import re
from collections import Counter
from uuid import uuid4

import grpc
import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from tests.support.callers import METHOD, ROUTE, ULID
from tests.support.customer import Customer
from tests.support.stack import is_worker

IN_FLIGHT = 32
GROWTH_BYTES_MAX = 16 * 2**20
GRPC_STATUSES = {
    "OK",
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "ABORTED",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
}


@pytest.fixture
def customer(service):
    return Customer.open(service.database.engine)


# ---------------------------------------------------------------- REST

ID = re.compile(f"{ULID.pattern}|[0-9a-f-]{{36}}")  # a UUID if Envoy responds before any filter has run

METHODS = st.sampled_from(["POST"] * 8 + ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"])
SEGMENTS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"], exclude_characters="#\\"), max_size=20)
PATHS = st.one_of(
    st.just(ROUTE), st.just(ROUTE), st.builds("{}{}".format, st.sampled_from([ROUTE, "/", "/v1/"]), SEGMENTS)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["numbers", "inbound_url", "status_url", "campaign_id", "label", "success"]
NUMBERS = st.lists(st.one_of(st.from_regex(r"\A\+[0-9]{0,16}\Z"), st.text(max_size=16)), max_size=5)
ORDERS = st.fixed_dictionaries(
    {"numbers": NUMBERS | JSON},
    optional={field: JSON | st.text(max_size=40) for field in [*FIELDS[1:], "other"]},
)
HEADER_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).map(str.strip)
CONTENT_TYPES = st.sampled_from(
    ["application/json"] * 6 + ["application/json; charset=utf-8", "text/plain", "application/grpc", ""]
)


@st.composite
def mutated(draw, valid):
    """Bytes of which some are changed, removed or added."""
    raw = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


BODIES = mutated(st.one_of(ORDERS, ORDERS, JSON).map(lambda order: json.dumps(order).encode())) | st.binary(max_size=50)


def test_every_rest_response_is_in_the_envelope_and_none_is_5xx(service, customer, times):
    keys = [f"Bearer {customer.key}"] * 6 + [
        f"Bearer {customer.new_key('numbers:read')}",
        f"Bearer {customer.unknown_key()}",
    ]
    numbers = customer.numbers(50)
    seen = Counter()
    with httpx.Client(base_url=service.rest_url, timeout=20) as client:

        @settings(
            max_examples=times(600, 20_000), deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(
            METHODS, PATHS, BODIES, CONTENT_TYPES, st.sampled_from(keys) | HEADER_TEXT, st.none() | HEADER_TEXT,
            st.sampled_from(numbers),
        )  # fmt: skip
        def send(method, path, body, content_type, authorization, idempotency_key, number):
            headers = {"content-type": content_type, "authorization": authorization}
            if idempotency_key is not None:
                headers["idempotency-key"] = idempotency_key
            body = body.replace(b"+1", number.encode())
            # `raw_path`, because httpx would escape or reject some paths.
            url = httpx.URL(service.rest_url).copy_with(raw_path=path.encode())
            response = client.request(method, url, content=body, headers=headers)
            seen[response.status_code] += 1
            assert response.status_code < 500, response.text
            assert ID.fullmatch(response.headers["x-request-id"])
            if method != "HEAD" and "grpc-status" not in response.headers:
                assert_in_envelope(response)

        send()
    assert len(seen) > 3, "too few different statuses"


def assert_in_envelope(response):
    body = response.json()
    assert body["success"] is (response.status_code == 200)
    if response.status_code != 200:
        assert body["error"]["request_id"] == response.headers["x-request-id"]
        assert body["error"].keys() - {"details"} == {"code", "message", "request_id"}


# ---------------------------------------------------------------- gRPC


def messages(customer, count):
    """Serialized orders, most of them damaged, and random bytes."""
    rng = random.Random(17)
    numbers = customer.numbers(100)
    for _ in range(count):
        order = OrderNumbersRequest(numbers=rng.sample(numbers, rng.randint(0, 3)))
        if rng.random() < 0.5:
            order.label = "".join(rng.choices("ab\0é\U0001f4de", k=rng.randint(0, 20)))
        if rng.random() < 0.3:
            order.inbound_url = rng.choice(["https://example.com", "http://x", "https://[::1]/", "https://\ud7ff"])
        if rng.random() < 0.3:
            order.campaign_id = str(uuid4())
        raw = bytearray(order.SerializeToString())
        for _ in range(rng.randint(0, 4)):
            at = rng.randint(0, len(raw))
            raw[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        yield bytes(raw) if rng.random() < 0.9 else rng.randbytes(rng.randint(0, 200))


def send_all(target, key, raws):
    """Send each message, and count the statuses."""

    async def run():
        codes = Counter()
        async with grpc.aio.insecure_channel(target) as channel:
            method = channel.unary_unary(METHOD)

            async def send_some():
                for raw in raws:
                    try:
                        await method(raw, metadata=(("authorization", f"Bearer {key}"),), timeout=20)
                        codes["OK"] += 1
                    except grpc.aio.AioRpcError as error:
                        codes[error.code().name] += 1

            await asyncio.gather(*(send_some() for _ in range(IN_FLIGHT)))
        return codes

    return asyncio.run(run())


def test_no_message_causes_unknown_or_internal_and_memory_does_not_grow(service, customer, times):
    count = times(2000, 50_000)
    workers = [process for process in service.up.processes() if is_worker(process)]
    target, key = service.grpc_targets[0], customer.key
    # The first fifth fills pools and caches, which may grow.
    codes = send_all(target, key, messages(customer, count // 5))
    before = sum(process.memory_info().rss for process in workers)
    codes += send_all(target, key, messages(customer, count - count // 5))
    after = sum(process.memory_info().rss for process in workers)
    assert codes.total() == count
    assert set(codes) <= GRPC_STATUSES
    assert {"OK", "INVALID_ARGUMENT"} <= set(codes)
    assert after - before < GROWTH_BYTES_MAX
    assert all(map(psutil.Process.is_running, workers))
