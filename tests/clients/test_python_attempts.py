"""What the Python client sends again, and what it then says of the outcome. Sync and async."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import inf
from uuid import uuid4

import httpx2
import pytest

from ordernumbers_client import (
    Client,
    InsufficientInventory,
    NoResponse,
    Refused,
    Unavailable,
    ValidationFailed,
)
from server.errors import ERRORS
from tests.clients.python import InStep, free_numbers
from tests.support.mishaps import lose, respond
from tests.support.stack import is_worker, kill


def test_the_same_key_gets_the_same_response(client):
    numbers, key = free_numbers(client, 1), str(uuid4())
    assert client.order(numbers, idempotency_key=key) == client.order(numbers, idempotency_key=key)


def test_an_order_whose_response_is_lost_is_sent_again_and_sold_once(mishaps):
    client, proxy = mishaps(lose, lose)
    number = free_numbers(client, 1)[0]  # the search lost its first two responses, too
    assert len(proxy.requests) == 3
    proxy.spoil(lose)
    (row,) = client.order([number]).data
    assert row.number == number
    (first, again) = proxy.idempotency_keys
    assert first == again
    assert [row.number for row in client.find_order(first).data] == [number]


PASSING = {"UNAVAILABLE": 503, "RATE_LIMITED": 429, "TIMEOUT": 504, "IDEMPOTENCY_IN_PROGRESS": 409}


@pytest.mark.parametrize(("code", "status"), PASSING.items())
def test_an_error_that_passes_is_waited_out(mishaps, code, status):
    body = {"success": False, "error": {"code": code, "message": "later", "request_id": "r"}}
    client, proxy = mishaps(respond(status, json.dumps(body), "retry-after: 1"))
    assert client.bulk_order(1).status == "complete"
    (first, again) = proxy.idempotency_keys
    assert first == again


def test_a_deadline_that_retry_after_exceeds_is_not_waited_for(mishaps):
    body = {"success": False, "error": {"code": "UNAVAILABLE", "message": "later", "request_id": "r"}}
    client, proxy = mishaps(respond(503, json.dumps(body), "retry-after: 3600"))
    with pytest.raises(Unavailable) as refusal:
        client.bulk_order(1)
    assert (refusal.value.retry_after_seconds, refusal.value.is_outcome_unknown) == (3600, False)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("seconds", ["9" * 5000, "9" * 10, "-1", "1.5", "soon", "٣"])
def test_a_retry_after_that_is_no_number_of_seconds_is_ignored(mishaps, seconds):
    body = {"success": False, "error": {"code": "UNAVAILABLE", "message": "later", "request_id": "r"}}
    client, proxy = mishaps(respond(503, json.dumps(body), f"retry-after: {seconds}"))
    assert client.bulk_order(1).status == "complete"
    (first, again) = proxy.idempotency_keys
    assert first == again


def test_a_refusal_after_a_lost_response_does_not_say_that_nothing_was_done(mishaps):
    body = {"success": False, "error": {"code": "UNAVAILABLE", "message": "later", "request_id": "r"}}
    client, proxy = mishaps(lose, respond(503, json.dumps(body), "retry-after: 3600"))
    with pytest.raises(Unavailable) as refusal:
        client.bulk_order(1)
    assert refusal.value.is_outcome_unknown
    assert client.bulk_order(1, idempotency_key=refusal.value.idempotency_key).status == "complete"
    assert len(set(proxy.idempotency_keys)) == 1


def test_a_call_with_the_key_of_an_earlier_one_does_not_say_that_nothing_was_done(mishaps):
    body = {"success": False, "error": {"code": "UNAVAILABLE", "message": "later", "request_id": "r"}}
    refuse = respond(503, json.dumps(body), "retry-after: 3600")
    client, _ = mishaps(lose, refuse, refuse)
    with pytest.raises(Unavailable) as first:
        client.bulk_order(1)
    with pytest.raises(Unavailable) as again:
        client.bulk_order(1, idempotency_key=first.value.idempotency_key)
    assert again.value.is_outcome_unknown


def test_a_response_that_cannot_be_unpacked_is_sent_again_under_the_same_key(mishaps):
    client, proxy = mishaps(respond(200, "no gzip", "content-encoding: gzip"))
    assert client.bulk_order(1).status == "complete"
    (first, again) = proxy.idempotency_keys
    assert first == again


def test_a_refusal_that_was_sent_again_says_that_nothing_was_done(mishaps):
    client, proxy = mishaps()
    (taken,) = free_numbers(client, 1)
    client.order([taken])
    proxy.spoil(lose)
    with pytest.raises(InsufficientInventory) as refusal:
        client.order([taken])
    assert refusal.value.is_outcome_unknown is False


def test_a_request_that_breaks_the_rules_was_never_carried_out(mishaps):
    body = {"success": False, "error": {"code": "TIMEOUT", "message": "later", "request_id": "r"}}
    client, proxy = mishaps()
    with pytest.raises(ValidationFailed) as refusal:
        client.order(free_numbers(client, 1), idempotency_key="a b")
    assert refusal.value.is_outcome_unknown is False
    proxy.spoil(respond(504, json.dumps(body)))
    with pytest.raises(ValidationFailed) as refusal:
        client.order(["4155550100"])
    assert refusal.value.is_outcome_unknown is False


@pytest.mark.parametrize("code", ["INVALID_INPUT", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"])
def test_a_malformed_request_was_never_carried_out(mishaps, code):
    body = {"success": False, "error": {"code": code, "message": "no", "request_id": "r"}}
    client, _ = mishaps(lose, respond(ERRORS[code].http_status, json.dumps(body)))
    with pytest.raises(Refused) as refusal:
        client.bulk_order(1)
    assert (refusal.value.code, refusal.value.is_outcome_unknown) == (code, False)


def test_without_a_response_until_the_deadline_the_outcome_is_unknown(mishaps):
    client, proxy = mishaps(*[lose] * 9)
    with pytest.raises(NoResponse) as error:
        client.bulk_order(1, deadline_seconds=1)
    assert (error.value.is_outcome_unknown, error.value.idempotency_key) == (True, proxy.idempotency_keys[0])


def test_a_response_that_does_not_come_in_time_is_given_up(mishaps):
    client, _ = mishaps(lambda *_: time.sleep(1), attempt_seconds=0.3, deadline_seconds=1)
    with pytest.raises(NoResponse) as error:
        client.bulk_order(1)
    assert isinstance(error.value.__cause__, httpx2.ReadTimeout | TimeoutError)
    assert error.value.is_outcome_unknown


def trickle(begin):
    """Begin a response, and go on byte by byte."""

    def send(client, _response):
        client.sendall(begin)
        for _ in range(30):
            time.sleep(0.1)
            client.sendall(b"x")

    return send


def assert_given_up_in_time(client):
    started = time.monotonic()
    with pytest.raises(NoResponse) as error:
        client.bulk_order(1)
    assert error.value.is_outcome_unknown
    assert time.monotonic() - started < 2


def test_a_response_that_comes_byte_by_byte_is_given_up(mishaps):
    client, _ = mishaps(trickle(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"), deadline_seconds=0.5)
    assert_given_up_in_time(client)


@pytest.mark.parametrize("kind", [InStep])
def test_headers_that_come_byte_by_byte_are_given_up(mishaps):
    client, _ = mishaps(trickle(b"HTTP/1.1 200 OK\r\nx-slow: "), deadline_seconds=0.5)
    assert_given_up_in_time(client)


@pytest.mark.parametrize("kind", [InStep])
def test_a_call_whose_headers_come_byte_by_byte_is_sent_again(mishaps):
    client, proxy = mishaps(trickle(b"HTTP/1.1 200 OK\r\nx-slow: "), attempt_seconds=0.5)
    assert client.bulk_order(1).status == "complete"
    assert len(proxy.requests) > 1
    assert len(set(proxy.idempotency_keys)) == 1


def test_a_server_that_accepts_no_connection_was_sent_nothing(kind):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        for _ in range(4):  # so that its queue is full
            connection = waiting.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with kind(url, "am_live_key", deadline_seconds=0.5) as client, pytest.raises(NoResponse) as error:
            client.bulk_order(1)
    assert isinstance(error.value.__cause__, httpx2.ConnectTimeout)
    assert error.value.is_outcome_unknown is False


@pytest.mark.parametrize("seconds", [1e10, inf])
def test_an_attempt_may_last_for_ever(mishaps, seconds):
    client, _ = mishaps(attempt_seconds=seconds, deadline_seconds=seconds)
    assert free_numbers(client, 1)


def test_without_a_server_nothing_was_done(kind):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        kind(f"http://127.0.0.1:{port}", "am_live_key", deadline_seconds=0.5) as client,
        pytest.raises(NoResponse) as error,
    ):
        client.bulk_order(1)
    assert error.value.is_outcome_unknown is False


def test_orders_during_kills_of_workers_are_sold_exactly_once(up, api_key):
    sent = []
    with (
        httpx2.Client(event_hooks={"request": [sent.append]}) as http,
        Client(up.rest_url, api_key, http=http) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        label, numbers = f"kills {uuid4()}", free_numbers(client, 100)
        orders = [pool.submit(client.order, [number], label=label) for number in numbers]
        for done in (30, 60):
            orders[done].result()
            kill(*(process for process in up.processes() if is_worker(process)))
        assert [order.result().data[0].number for order in orders] == numbers
        attempts = [request.headers["idempotency-key"] for request in sent if request.url.path.endswith("/orders")]
        assert len(attempts) > len(set(attempts)) == len(numbers)
        assert sorted(row.number for row in client.all_numbers(search=label)) == sorted(numbers)
