"""The edge's rate limits, per key and per address. They apply before a body is read, and use bounded memory."""

import itertools
import json
import socket
import time
from contextlib import contextmanager

import grpc
import httpx
import psutil
import pytest

from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_number_service_pb2_grpc import PhoneNumberServiceStub
from server.run import edge
from tests.support.callers import ROUTE, failure
from tests.support.edge import running_edge, running_server, sell, wait_until_ready
from tests.support.stack import local_settings, wait_until

ORDER = {"numbers": ["+14155550100"]}
INVENTED_KEYS = 300
GROWTH_BYTES_MAX = 24 * 2**20


def key(number):
    return f"Bearer am_live_{number:044}"


@pytest.fixture
def limited(tmp_path):
    """Start an edge with such limits. Returns a function that sends an order with a header, and the settings."""

    @contextmanager
    def start(**limits):
        settings = local_settings(tmp_path, workers=1, **limits)
        with (
            running_server(settings.grpc_port, sell),
            running_edge(settings),
            httpx.Client(base_url=f"http://127.0.0.1:{settings.rest_port}", timeout=20) as client,
        ):
            wait_until_ready(settings)

            def send_order(authorization, content=json.dumps(ORDER), headers=()):
                headers = {"authorization": authorization, "content-type": "application/json", **dict(headers)}
                return client.post(ROUTE, content=content, headers=headers)

            yield send_order, settings

    return start


def statuses(send_order, values):
    return [send_order(value).status_code for value in values]


# ---------------------------------------------------------------- by key


SPELLINGS = ["Bearer {}", "bearer {}", "BEARER  {}", "bEaRer   {}"]


def test_each_key_has_its_own_limit_whatever_the_case_and_spaces(limited):
    with limited(rate_limit_per_key=1) as (send_order, _):
        refused = next(response for response in map(send_order, itertools.repeat(key(1), 1000)) if response.is_error)
        assert refused.json() == failure("RATE_LIMITED", "rate limited", refused.headers["x-request-id"])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        names = itertools.count(100)

        def spellings_of_a_new_key():
            name = key(next(names)).removeprefix("Bearer ")
            return [spelling.format(name) for spelling in SPELLINGS]

        # A new key for each try: if the spellings had separate limits, a second try would use those up too.
        wait_until(lambda: statuses(send_order, spellings_of_a_new_key()).count(429) >= 2)
        assert statuses(send_order, [key(3)]) == [200]


def test_a_grpc_call_beyond_the_limit_is_resource_exhausted(tmp_path):
    settings = local_settings(tmp_path, rate_limit_per_key=1, workers=1)
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        with grpc.insecure_channel(f"127.0.0.1:{settings.rest_port}") as channel:
            start_order = PhoneNumberServiceStub(channel).OrderNumbers.future
            responses = [start_order(OrderNumbersRequest(), metadata=[("authorization", key(4))]) for _ in range(5)]
            assert grpc.StatusCode.RESOURCE_EXHAUSTED in [response.code() for response in responses]


# ---------------------------------------------------------------- by address


def passed(send_order, values, limit):
    """How many orders pass, and how many may pass at most with a limit of `limit` per second."""
    began = time.monotonic()
    count = statuses(send_order, values).count(200)
    return count, limit * (2 + time.monotonic() - began)


@pytest.mark.parametrize(
    ("setting", "invent"),
    [
        ("rate_limit_per_address", key),
        ("rate_limit_per_key", "Bearer {}".format),
        ("rate_limit_per_key", "{}".format),
        ("rate_limit_per_key", "Bearer am_live_{:043}".format),
    ],
    ids=["keys", "bearer tokens", "no scheme", "short keys"],
)
def test_invented_keys_do_not_raise_the_limit(limited, setting, invent):
    """Values that have not the form of a key count as one key."""
    with limited(**{setting: 5}) as (send_order, _):
        count, count_max = passed(send_order, map(invent, range(INVENTED_KEYS)), 5)
        assert count <= count_max
        assert count_max < INVENTED_KEYS, "the machine is too slow for this test"


def test_each_address_has_its_own_limit(limited):
    with limited(rate_limit_per_address=1) as (send_order, settings):
        wait_until(lambda: 429 in statuses(send_order, map(key, range(3))))
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other) as client:
            url = f"http://127.0.0.1:{settings.rest_port}{ROUTE}"
            assert client.post(url, json=ORDER, headers={"authorization": key(1)}).status_code == 200


def test_addresses_of_one_ipv6_network_have_one_limit(limited, monkeypatch):
    """A caller may have 2 ** 64 of them. The addresses come in a header, which only this test's edge trusts."""
    render = edge.edge_config

    def trusting_config(settings):
        config = render(settings)
        (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
        chain["filters"][0]["typed_config"]["xff_num_trusted_hops"] = 1
        return config

    monkeypatch.setattr(edge, "edge_config", trusting_config)
    with limited(rate_limit_per_address=1) as (send_order, _):

        def statuses_from(addresses):
            return [send_order(key(1), headers={"x-forwarded-for": address}).status_code for address in addresses]

        wait_until(lambda: 429 in statuses_from(f"2001:db8::{i}" for i in range(3)))
        assert statuses_from(f"2001:db8:{i}::1" for i in range(1, 9)) == [200] * 8
        assert statuses_from(f"192.0.2.{i}" for i in range(8)) == [200] * 8


# ---------------------------------------------------------------- before a body, in bounded memory


def test_a_request_beyond_the_limit_is_refused_before_its_body_is_read(limited):
    with limited(rate_limit_per_key=1) as (send_order, _):
        broken = [send_order(key(1), content=b"{" * 60_000).status_code for _ in range(20)]
        assert set(broken) == {400, 429}


def test_long_values_and_many_keys_use_little_memory(tmp_path, times):
    count = times(2000, 10_000)
    settings = local_settings(tmp_path, rate_limit_per_key=10**6, rate_limit_per_address=10**6, workers=1)
    with running_edge(settings) as envoy:
        send_all(settings, map(key, range(count)))
        before = psutil.Process(envoy.pid).memory_info().rss
        send_all(settings, (f"Bearer {i:015000}" for i in range(count)))
        send_all(settings, map(key, range(count, 2 * count)))
        assert psutil.Process(envoy.pid).memory_info().rss - before < GROWTH_BYTES_MAX


def send_all(settings, values):
    """Send an order with each value, one after the other on one connection."""
    with socket.create_connection(("127.0.0.1", settings.rest_port), timeout=20) as connection:
        for value in values:
            head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n"
            connection.sendall(f"{head}authorization: {value}\r\n\r\n{{}}".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 503 ")  # there is no server
