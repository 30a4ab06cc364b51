"""The edge's rate limits: by key and by address, before a body is read, and in bounded memory."""

import itertools
import json
import socket
import time
from contextlib import contextmanager

import grpc
import httpx
import psutil
import pytest

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_number_service_pb2_grpc import PhoneNumberServiceStub
from server.run import edge
from tests.contract.edges import running_edge, running_server, sell, wait_until, wait_until_ready
from tests.support.callers import ROUTE, failure
from tests.support.stack import local_settings

ORDER = {"numbers": ["+14155550100"]}
MADE_UP = 300
GROWTH_BYTES_MAX = 24 * 2**20


def key(number):
    return f"Bearer am_live_{number:044}"


@pytest.fixture
def limited(tmp_path):
    """An edge with such limits before a good server: a way to order with some `authorization`, and its settings."""

    @contextmanager
    def start(**limits):
        settings = local_settings(tmp_path, workers=1, **limits)
        with (
            running_server(settings.grpc_port, sell),
            running_edge(settings),
            httpx.Client(base_url=f"http://127.0.0.1:{settings.rest_port}", timeout=20) as client,
        ):
            wait_until_ready(settings)

            def order(authorization, content=json.dumps(ORDER), headers=()):
                headers = {"authorization": authorization, "content-type": "application/json", **dict(headers)}
                return client.post(ROUTE, content=content, headers=headers)

            yield order, settings

    return start


def statuses(order, values):
    return [order(value).status_code for value in values]


# ---------------------------------------------------------------- by key


SPELLINGS = ["Bearer {}", "bearer {}", "BEARER  {}", "bEaRer   {}"]


def test_a_key_has_its_own_limit_however_it_is_spelt(limited):
    with limited(rate_limit_per_key=1) as (order, _):
        refused = next(answer for answer in map(order, itertools.repeat(key(1), 1000)) if answer.is_error)
        assert refused.json() == failure("RATE_LIMITED", "rate limited", refused.headers["x-request-id"])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        names = itertools.count(100)

        def spelt():
            name = key(next(names)).removeprefix("Bearer ")
            return [spelling.format(name) for spelling in SPELLINGS]

        wait_until(lambda: statuses(order, spelt()).count(429) >= 2)
        assert statuses(order, [key(3)]) == [200]


def test_a_native_call_beyond_the_limit_is_refused_with_its_own_status(tmp_path):
    settings = local_settings(tmp_path, rate_limit_per_key=1, workers=1)
    with running_server(settings.grpc_port, sell), running_edge(settings):
        wait_until_ready(settings)
        with grpc.insecure_channel(f"127.0.0.1:{settings.rest_port}") as channel:
            order = PhoneNumberServiceStub(channel).OrderNumbers.future
            answers = [order(OrderNumbersRequest(), metadata=[("authorization", key(4))]) for _ in range(5)]
            assert grpc.StatusCode.RESOURCE_EXHAUSTED in [answer.code() for answer in answers]


# ---------------------------------------------------------------- by address


def passed(order, values, limit):
    """How many are let through, and how many a limit of so many a second lets through at most meanwhile."""
    began = time.monotonic()
    count = statuses(order, values).count(200)
    return count, limit * (2 + time.monotonic() - began)


@pytest.mark.parametrize(
    ("setting", "made_up"),
    [
        ("rate_limit_per_address", key),
        ("rate_limit_per_key", "Bearer {}".format),
        ("rate_limit_per_key", "{}".format),
        ("rate_limit_per_key", "Bearer am_live_{:043}".format),
    ],
    ids=["keys", "bearers", "anything", "short keys"],
)
def test_of_made_up_keys_no_more_pass_than_the_limit_of_an_address(limited, setting, made_up):
    """Those that cannot be keys count as one key."""
    with limited(**{setting: 5}) as (order, _):
        count, most = passed(order, map(made_up, range(MADE_UP)), 5)
        assert count <= most
        assert most < MADE_UP, "too slow to show anything"


def test_each_address_has_its_own_limit(limited):
    with limited(rate_limit_per_address=1) as (order, settings):
        wait_until(lambda: 429 in statuses(order, map(key, range(3))))
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other) as client:
            url = f"http://127.0.0.1:{settings.rest_port}{ROUTE}"
            assert client.post(url, json=ORDER, headers={"authorization": key(1)}).status_code == 200


def test_addresses_of_one_ipv6_network_have_one_limit(limited, monkeypatch):
    """A caller there has 2 ** 64 of them. Shown with addresses that a proxy reports, which only this test trusts."""
    render = edge.edge_config

    def trusting(settings):
        config = render(settings)
        (chain,) = config["static_resources"]["listeners"][0]["filter_chains"]
        chain["filters"][0]["typed_config"]["xff_num_trusted_hops"] = 1
        return config

    monkeypatch.setattr(edge, "edge_config", trusting)
    with limited(rate_limit_per_address=1) as (order, _):

        def all_of(addresses):
            return [order(key(1), headers={"x-forwarded-for": address}).status_code for address in addresses]

        wait_until(lambda: 429 in all_of(f"2001:db8::{i}" for i in range(3)))
        assert all_of(f"2001:db8:{i}::1" for i in range(1, 9)) == [200] * 8
        assert all_of(f"192.0.2.{i}" for i in range(8)) == [200] * 8


# ---------------------------------------------------------------- before a body, in bounded memory


def test_beyond_the_limit_no_body_is_read(limited):
    with limited(rate_limit_per_key=1) as (order, _):
        broken = [order(key(1), content=b"{" * 60_000).status_code for _ in range(20)]
        assert set(broken) == {400, 429}


def test_long_values_and_many_keys_cost_little_memory(tmp_path, times):
    count = times(2000, 10_000)
    settings = local_settings(tmp_path, rate_limit_per_key=10**6, rate_limit_per_address=10**6, workers=1)
    with running_edge(settings) as envoy:
        send_all(settings, map(key, range(count)))
        before = psutil.Process(envoy.pid).memory_info().rss
        send_all(settings, (f"Bearer {i:015000}" for i in range(count)))
        send_all(settings, map(key, range(count, 2 * count)))
        assert psutil.Process(envoy.pid).memory_info().rss - before < GROWTH_BYTES_MAX


def send_all(settings, values):
    """Orders with each value, one after the other on one connection."""
    with socket.create_connection(("127.0.0.1", settings.rest_port), timeout=20) as connection:
        for value in values:
            head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n"
            connection.sendall(f"{head}authorization: {value}\r\n\r\n{{}}".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 503 ")  # there is no server
