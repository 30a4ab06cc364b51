"""Random requests of every RPC. REST responses are in the envelope and never 5xx. gRPC statuses are ours. Memory does
not grow.
"""

import asyncio
import json
import random
import re
from collections import Counter
from urllib.parse import quote
from uuid import UUID

import grpc
import httpx
import psutil
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.callers import RPCS, SERVICE, ULID, exactly, route_of
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


WRONG = {
    "numbers": [[], ["+1"], ["+19999999999"] * 2, ["+19999999999"]],
    "ids": [[], ["x"], [str(UUID(int=7))]],
    "id": ["", "x", str(UUID(int=7))],
    "inbound_url": ["", "http://x", "https://[::1]/", "https://\u1680"],
    "status_url": ["https://10.0.0.1"],
    "label": ["", "\0", "x" * 256],
    "campaign_id": ["", "x", str(UUID(int=7))],
    "area_code": ["", "9", "٩٠٠"],
    "number_type": ["", "other"],
    "pattern": ["", "%", "_", "1" * 16],
    "quantity": [0, 101, 2**32 - 1],
    "minutes": [0, 31],
    "limit": [0, 101],
    "mode": ["partial"],
    "cursor": ["A" * 22, "_" * 22, "x"],
    "search": ["", "x" * 256],
    "idempotency_key": ["", "a b", "x"],
}


def fields_of(rpc):
    return [field.name for field in SERVICE.methods_by_name[rpc].input_type.fields]


# ---------------------------------------------------------------- REST

ID = re.compile(f"{ULID.pattern}|[0-9a-f-]{{36}}")  # a UUID if Envoy responds before any filter has run

VERBS = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"])
SEGMENTS = st.text(st.characters(codec="ascii", categories=["L", "N", "P"], exclude_characters="#\\"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
HEADER_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).map(str.strip)
CONTENT_TYPES = st.sampled_from(
    ["application/json"] * 6 + ["application/json; charset=utf-8", "text/plain", "application/grpc", ""]
)


@st.composite
def damaged(draw, raw):
    """Bytes of which some are changed, removed or added. Half of the time none."""
    raw = bytearray(raw)
    for _ in range(draw(st.sampled_from([0] * 8 + [1, 4]))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


@st.composite
def rest_requests(draw, known):
    """The verb, the target and the body of a request that is like one of some RPC."""
    rpc = draw(st.sampled_from(RPCS))
    route = route_of(rpc)
    is_proper = st.sampled_from([True] * 9 + [False])
    members = {}
    for name in fields_of(rpc):
        if draw(st.booleans()):
            values = known.proper[name] if draw(is_proper) else WRONG.get(name, [])
            members[name] = draw(st.sampled_from(values) if values else JSON)
    if not draw(is_proper):
        members["other"] = draw(JSON)
    ids = st.sampled_from(known.proper["id"]) if draw(is_proper) else st.sampled_from(WRONG["id"]) | SEGMENTS
    target = re.sub(r"{\w+}", lambda _: draw(ids), route.template)
    if not draw(is_proper):
        target += draw(st.sampled_from(["/", "?", "?x=1", "/x"]) | SEGMENTS)
    verb = route.verb if draw(is_proper) else draw(VERBS)
    if route.takes_body:
        body = draw(
            damaged(json.dumps({k: v for k, v in members.items() if k != "id"}).encode()) | st.binary(max_size=50)
        )
        return verb, target, body
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in members.items() if name != "id")
    return verb, f"{target}?{query}" if query else target, draw(st.sampled_from([b""] * 8 + [b"{}"]))


def test_every_rest_response_is_in_the_envelope_and_none_is_5xx(service, known, times):
    customer = known.customer
    keys = [f"Bearer {customer.key}"] * 8 + [
        f"Bearer {customer.new_key('numbers:read')}",
        f"Bearer {customer.unknown_key()}",
    ]
    seen = Counter()
    with httpx.Client(base_url=service.rest_url, timeout=20) as client:

        @settings(
            max_examples=times(900, 30_000), deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(
            rest_requests(known), CONTENT_TYPES, st.sampled_from(keys) | HEADER_TEXT,
            st.none() | st.none() | HEADER_TEXT,
        )  # fmt: skip
        def send(request, content_type, authorization, idempotency_key):
            verb, target, body = request
            headers = {"authorization": authorization} | ({"content-type": content_type} if body else {})
            if idempotency_key is not None:
                headers["idempotency-key"] = idempotency_key
            # As an extension, because httpx would escape or reject some targets.
            sent = target.encode("ascii", "ignore")
            response = client.request(verb, "/", content=body, headers=headers, extensions=exactly(sent.decode()))
            seen[response.status_code] += 1
            assert response.status_code < 500, response.text
            assert ID.fullmatch(response.headers["x-request-id"])
            if verb != "HEAD" and "grpc-status" not in response.headers:
                assert_in_envelope(response)

        send()
    print(sorted(seen.items()))
    assert {200, 400, 401, 404, 422} <= set(seen)


def assert_in_envelope(response):
    body = response.json()
    assert body["success"] is (response.status_code == 200)
    if response.status_code != 200:
        assert body["error"]["request_id"] == response.headers["x-request-id"]
        assert body["error"].keys() - {"details"} == {"code", "message", "request_id"}


# ---------------------------------------------------------------- gRPC


def messages(known, count):
    """RPCs with serialized requests, many of them damaged, and random bytes."""
    rng = random.Random(17)
    for _ in range(count):
        rpc = rng.choice(RPCS)
        request = {}
        for name in fields_of(rpc):
            if rng.random() < (0.95 if name in ("id", "ids", "numbers", "quantity") else 0.4):
                request[name] = rng.choice(known.proper[name] if rng.random() < 0.9 else WRONG.get(name, [True]))
        raw = bytearray(GetMessageClass(SERVICE.methods_by_name[rpc].input_type)(**request).SerializeToString())
        for _ in range(rng.choice([0, 0, 0, 1, 4])):
            at = rng.randint(0, len(raw))
            raw[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        yield rpc, bytes(raw) if rng.random() < 0.9 else rng.randbytes(rng.randint(0, 200))


def send_all(target, key, requests):
    """Send each message to its RPC, and count RPCs and statuses."""

    async def run():
        codes = Counter()
        async with grpc.aio.insecure_channel(target) as channel:
            methods = {rpc: channel.unary_unary(f"/{SERVICE.full_name}/{rpc}") for rpc in RPCS}

            async def send_some():
                for rpc, raw in requests:
                    try:
                        await methods[rpc](raw, metadata=(("authorization", f"Bearer {key}"),), timeout=20)
                        codes[rpc, "OK"] += 1
                    except grpc.aio.AioRpcError as error:
                        codes[rpc, error.code().name] += 1

            await asyncio.gather(*(send_some() for _ in range(IN_FLIGHT)))
        return codes

    return asyncio.run(run())


def test_no_message_causes_unknown_or_internal_and_memory_does_not_grow(service, known, times):
    count = times(4000, 100_000)
    workers = [process for process in service.up.processes() if is_worker(process)]
    target, key = service.grpc_targets[0], known.customer.key
    # The first fifth fills pools and caches, which may grow.
    codes = send_all(target, key, messages(known, count // 5))
    before = sum(process.memory_info().rss for process in workers)
    codes += send_all(target, key, messages(known, count - count // 5))
    after = sum(process.memory_info().rss for process in workers)
    print(sorted(codes.items()))
    assert codes.total() == count
    assert {code for _, code in codes} <= GRPC_STATUSES
    assert {rpc for rpc, code in codes if code == "INVALID_ARGUMENT"} == set(RPCS)
    # In the short form some RPCs get too few good messages.
    assert len({rpc for rpc, code in codes if code == "OK"}) >= times(len(RPCS) // 2, len(RPCS) - 2)
    assert after - before < GROWTH_BYTES_MAX
    assert all(map(psutil.Process.is_running, workers))
