"""The Python client against a real `ordernumbers up`: the main cases of the contract, sync and async."""

import json
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from inspect import getmembers, isfunction, signature
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest

from ordernumbers_client import (
    AsyncClient,
    Client,
    InsufficientInventory,
    InvalidInput,
    NoResponse,
    NotFound,
    Refused,
    Unauthorized,
    UnexpectedResponse,
    ValidationFailed,
    errors,
)
from ordernumbers_client.models import PhoneNumber
from server.errors import ERRORS, Code
from tests.clients.python import InStep, free_numbers
from tests.support.mishaps import respond

CLIENT = Path(__file__).parents[2] / "clients/python"
OF_THE_PROGRAM = {
    Code.METHOD_NOT_ALLOWED,
    Code.REQUEST_TIMEOUT,
    Code.PAYLOAD_TOO_LARGE,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.UPGRADE_REQUIRED,
    Code.HEADERS_TOO_LARGE,
}
"""Codes without a class of their own."""


# ---------------------------------------------------------------- the calls


def test_a_number_is_found_ordered_changed_and_given_back(client):
    (found,) = client.search(area_code="415", quantity=1)
    assert (found.number_type, found.price) == ("local", "1.00")
    (row,) = client.order([found.number], label="front desk").data
    assert (row.number, row.label, row.inbound_url) == (found.number, "front desk", None)
    assert abs((datetime.now(UTC) - row.created_at).total_seconds()) < 600
    assert client.get_number(row.id) == row
    changed = client.update_number(row.id, label="night line", inbound_url="https://hooks.example.com/in")
    assert (changed.label, changed.inbound_url) == ("night line", "https://hooks.example.com/in")
    assert client.release_number(row.id).status == "released"
    with pytest.raises(NotFound):
        client.get_number(row.id)


def test_an_order_can_be_checked_and_looked_up(client):
    numbers, key = free_numbers(client, 2), str(uuid4())
    checked = client.order(numbers, validate_only=True)
    assert (checked.meta.total_price, checked.data[0].id) == ("2.00", None)
    ordered = client.order(numbers, idempotency_key=key)
    found = client.find_order(key)
    assert [row.number for row in found.data] == numbers
    assert client.get_order(found.meta.order_id).data == ordered.data


def test_numbers_are_held_and_ordered_in_bulk(client):
    numbers = free_numbers(client, 2)
    hold = client.hold(numbers, minutes=5)
    assert (hold.numbers, client.get_hold(hold.id)) == (numbers, hold)
    assert (hold.expires_at - hold.created_at).total_seconds() == 300
    assert client.release_hold(hold.id).numbers == numbers
    order = client.bulk_order(2, label="fleet")
    assert client.get_bulk_order(order.order_id) == order
    ids = [row.id for row in order.assigned_numbers]
    assert client.bulk_release(ids).released == ids


def test_all_numbers_goes_through_all_pages(client):
    label = f"page {uuid4()}"
    ordered = [row.number for _ in range(2) for row in client.order(free_numbers(client, 60), label=label).data]
    page = client.list_numbers(limit=50, search=label)
    assert len(page.data) == 50
    assert page.meta.next_cursor
    listed = list(client.all_numbers(search=label))
    assert sorted(row.number for row in listed) == sorted(ordered)
    assert isinstance(listed[0], PhoneNumber)


# ---------------------------------------------------------------- errors


def test_a_number_that_is_gone_is_named(client):
    taken, free = free_numbers(client, 2)
    client.order([taken])
    with pytest.raises(InsufficientInventory) as refusal:
        client.order([free, taken])
    assert (refusal.value.unavailable, refusal.value.available_count, refusal.value.status) == ([taken], 1, 409)
    assert refusal.value.is_outcome_unknown is False


def test_fields_that_break_their_rules_are_named(client):
    with pytest.raises(ValidationFailed) as refusal:
        client.order(["4155550100"])
    assert refusal.value.details == {"numbers[0]": "must be E.164"}
    assert refusal.value.request_id in str(refusal.value)


def test_an_unknown_campaign_and_an_unknown_number_are_refused(client):
    with pytest.raises(NotFound):
        client.order(free_numbers(client, 1), campaign_id=str(uuid4()))
    with pytest.raises(ValidationFailed, match="must be a UUID"):
        client.get_number("front desk?")


@pytest.mark.parametrize("id_", ["", ".", ".."])
def test_an_id_that_leads_to_another_path_is_not_sent(client, id_):
    with pytest.raises(ValueError, match="id must be a UUID"):
        client.release_number(id_)


def test_a_wrong_api_key_is_refused_and_appears_nowhere(kind, up):
    with kind(up.rest_url, "am_live_wrong") as client, pytest.raises(Unauthorized) as refusal:
        client.search()
    assert "am_live_wrong" not in repr(refusal.value) + repr(vars(client))


@pytest.mark.parametrize("key", ["", "am_live_secret\n", "am live secret", "am_live_sécret"])
def test_an_api_key_that_no_header_can_have_is_an_error_of_the_program(kind, key):
    with pytest.raises(ValueError, match=r"^api_key must be visible ASCII characters$"):
        kind("http://127.0.0.1", key)


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://:80", "http://a b", "http://me:am_live_key@127.0.0.1"],
)
def test_a_url_that_leads_to_no_service_is_an_error_of_the_program(kind, url):
    with pytest.raises(ValueError, match=r"^base_url must be http:// or https:// with a host, [a-z, ]+$"):
        kind(url, "am_live_key")


@pytest.mark.parametrize("key", ["a\n", " a", "a\r\nb", "ä"])
def test_an_idempotency_key_that_no_header_can_have_is_not_sent(client, key):
    with pytest.raises(ValueError, match=r"^idempotency_key must be visible ASCII characters$"):
        client.bulk_order(1, idempotency_key=key)


@pytest.mark.parametrize("key", ["", "a b", "a\tb", "a" * 256])
def test_the_service_refuses_other_malformed_idempotency_keys(client, key):
    with pytest.raises((ValidationFailed, InvalidInput)):
        client.bulk_order(1, idempotency_key=key)


@pytest.mark.parametrize(("kind", "http"), [(Client, httpx2.Client), (InStep, httpx2.AsyncClient)])
def test_an_error_of_the_http_client_that_is_no_loss_ends_the_call(kind, http, up, api_key):
    started = time.monotonic()
    with kind(up.rest_url, api_key, http=http(headers={"x-team": "a\n"})) as client, pytest.raises(NoResponse) as error:
        client.bulk_order(1)
    assert isinstance(error.value.__cause__, httpx2.LocalProtocolError)
    assert error.value.idempotency_key
    assert time.monotonic() - started < 1


def test_every_code_has_a_class_or_means_an_error_of_the_program():
    assert set(errors.CLASSES) == set(ERRORS) - OF_THE_PROGRAM


def test_a_later_code_is_a_refusal_too(mishaps):
    body = {"success": False, "error": {"code": "NEW", "message": "new", "request_id": "r"}}
    client, _ = mishaps(respond(418, json.dumps(body)))
    with pytest.raises(Refused) as refusal:
        client.search()
    assert (type(refusal.value), refusal.value.code, refusal.value.details) == (Refused, "NEW", {})


def test_a_response_of_another_server_is_not_taken_for_a_refusal(mishaps):
    client, _ = mishaps(respond(404, "<h1>Not here</h1>", "x-request-id: r"))
    with pytest.raises(UnexpectedResponse) as error:
        client.hold(["+14155550100"])
    assert (error.value.status, error.value.request_id, error.value.is_outcome_unknown) == (404, "r", True)


@pytest.mark.parametrize(
    "body",
    [
        '{"success": false, "data": []}',
        '{"success": "true", "data": []}',
        '{"data": []}',
        '{"success": true}',
        '{"success": true, "data": {}}',
        '{"success": true, "data": ""}',
        '{"success": true, "data": null}',
        "[" * 200_000,
    ],
)
def test_a_response_without_a_result_is_not_taken_for_one(mishaps, body):
    client, _ = mishaps(respond(200, body), respond(200, body))
    for call in (client.search, client.all_numbers):
        with pytest.raises(UnexpectedResponse):
            list(call())


def test_an_answer_that_is_too_deep_keeps_the_idempotency_key(mishaps):
    client, proxy = mishaps(respond(200, "[" * 200_000))
    with pytest.raises(UnexpectedResponse) as error:
        client.bulk_order(1)
    assert error.value.is_outcome_unknown
    assert [error.value.idempotency_key] == proxy.idempotency_keys


@pytest.mark.parametrize(
    "error",
    [
        '"Bad gateway"',
        '{"code": 502, "message": "Bad gateway"}',
        '{"code": 502, "message": "Bad gateway", "request_id": "r"}',
        '{"code": "BAD", "message": null, "request_id": "r"}',
    ],
)
def test_an_error_of_another_server_in_json_is_not_taken_for_a_refusal(mishaps, error):
    client, _ = mishaps(respond(502, f'{{"success": false, "error": {error}}}'))
    with pytest.raises(UnexpectedResponse):
        client.search()


@pytest.mark.parametrize(("kind", "http"), [(Client, httpx2.Client), (InStep, httpx2.AsyncClient)])
def test_a_redirection_is_not_followed(mishaps, http):
    client, proxy = mishaps(respond(302, "", "location: /healthz"), http=http(follow_redirects=True))
    with pytest.raises(UnexpectedResponse) as error:
        client.bulk_order(1)
    assert (error.value.status, len(proxy.requests)) == (302, 1)


# ---------------------------------------------------------------- the package


def test_both_clients_have_the_same_calls_and_arguments():
    (sync, async_) = (
        {name: list(signature(function).parameters.values()) for name, function in getmembers(kind, isfunction)}
        for kind in (Client, AsyncClient)
    )
    for name in ("__enter__", "__exit__", "close", "__init__"):
        sync.pop(name), async_.pop(name.replace("__e", "__ae").replace("close", "aclose"))
    assert sync == async_
    assert len(sync) == 16 + 2


def test_the_readme_is_true(up):
    (example,) = re.findall(r"```python\n(.*?)```", (CLIENT / "README.md").read_text(), re.DOTALL)
    example = example.replace("http://127.0.0.1:8080", up.rest_url)
    done = subprocess.run([sys.executable, "-c", example], cwd=up.folder, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    assert re.fullmatch(r"\+1\d{10} is ours\n\['\+1\d{10}'\] gone, request [0-9A-Z]{26}\n", done.stdout)
