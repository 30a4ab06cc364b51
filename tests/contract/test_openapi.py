"""Every response that openapi.json has, by the real edge: each call, its success and each of its refusals.

The fixtures `rest` and `edge` hold every other response of the contract's tests against it, too.
"""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from server.errors import ERRORS, Code
from tests.contract.test_authorization import Things, valid_request
from tests.support.callers import TIMEOUT_SECONDS, Rest, authorization, route_of
from tests.support.customer import Customer
from tests.support.edge import running_edge, running_server, wait_until_ready
from tests.support.openapi import (
    BY_RPC,
    COMPONENTS,
    OPERATIONS,
    assert_documented,
    content_of,
    faults,
    operation_of,
)
from tests.support.stack import Up, local_settings

UNKNOWN_ID = "0190b0a0-0000-7000-8000-000000000001"
WRITES = [each.rpc for each in OPERATIONS if (409, "IDEMPOTENCY_IN_PROGRESS") in each.refusals()]
JSON = {"content-type": "application/json"}

each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.rpc)


@pytest.fixture
def things(rest, customer):
    return Things(rest, customer)


# ---------------------------------------------------------------- successes


class Response(NamedTuple):
    """A response that is not sent by `rest`."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def of_httpx(response):
    return Response(response.status_code, response.json(), response.headers)


@each_operation
def test_a_success_is_as_documented(rest, customer, things, operation):
    request = valid_request(operation.rpc, things)
    key = {"header_key": str(uuid4())} if operation.rpc in WRITES else {}
    response = rest.rpc(operation.rpc, customer.key, **key, **request)
    assert_documented_as(operation, response, 200)
    if key:
        again = rest.rpc(operation.rpc, customer.key, **key, **request)
        assert again.headers["idempotency-replayed"] == "true"
        assert_documented_as(operation, again, 200)


def test_an_order_that_is_only_checked_is_as_documented(rest, customer):
    response = rest(customer.key, numbers=customer.numbers(1), validate_only=True)
    assert_documented_as(BY_RPC["OrderNumbers"], response, 200)
    assert response.body["meta"] == {"total_price": "1.00"}


def assert_documented_as(operation, response, status, code=None):
    assert response.status == status, response.body
    assert_documented(operation, response.status, response.headers, response.body)
    if code:
        assert response.body["error"]["code"] == code


def test_the_examples_without_an_id_succeed_on_the_demo_one_after_the_other(open_path):
    settings = local_settings(open_path / ".data", workers=1)
    with Up(settings, open_path) as up, httpx.Client(base_url=up.until_ready().rest_url) as client:
        key = (open_path / ".data" / "demo.key").read_text().strip()
        for rpc in ("SearchNumbers", "OrderNumbers", "BulkOrderNumbers", "HoldNumbers", "ListNumbers"):
            response = Rest(client).rpc(rpc, key, **BY_RPC[rpc].example())
            assert_documented_as(BY_RPC[rpc], response, 200)
        assert [row["number"] for row in response.body["data"]] == BY_RPC["OrderNumbers"].example()["numbers"][::-1]


# ---------------------------------------------------------------- refusals of a call


def send(rest, operation, key, request, *, body=None, query="", headers=()):
    """Send the request of an operation with something changed."""
    route = route_of(operation.rpc)
    content = json.dumps(route.beside_path(request)).encode() if route.takes_body else None
    target = route.path(request)
    if not route.takes_body and (beside := route.beside_path(request)):
        query = "&".join([*(f"{name}={value}" for name, value in beside.items()), *([query] if query else [])])
    target += f"?{query}" if query else ""
    return rest.send(route.verb, target, key, content if body is None else body, headers)


def with_unknown_parameter(rest, customer, things, operation):
    return send(rest, operation, customer.key, valid_request(operation.rpc, things), query="labl=x")


def without_key(rest, customer, things, operation):
    return rest.rpc(operation.rpc, None, **valid_request(operation.rpc, things))


def without_scope(rest, customer, things, operation):
    ((scope,),) = (each["api_key"] for each in operation.document["security"])
    (other,) = {"numbers:read", "numbers:write"} - {scope}
    return rest.rpc(operation.rpc, customer.new_key(other), **valid_request(operation.rpc, things))


def with_malformed_key(rest, customer, things, operation):
    return rest.rpc(operation.rpc, customer.key, header_key="a b", **valid_request(operation.rpc, things))


def with_malformed_id(rest, customer, things, operation):
    return rest.rpc(operation.rpc, customer.key, **valid_request(operation.rpc, things) | {"id": "front-desk"})


def of_something_unknown(rest, customer, things, operation):
    request = valid_request(operation.rpc, things)
    unknown = {"id": UNKNOWN_ID, "campaign_id": UNKNOWN_ID, "idempotency_key": "unknown"}
    (name,) = list(unknown.keys() & request.keys() - ({"campaign_id"} if "id" in request else set()))
    return rest.rpc(operation.rpc, customer.key, **request | {name: unknown[name]})


def of_a_poor_customer(rest, customer, things, operation):
    return rest.rpc(operation.rpc, customer.poor().key, **valid_request(operation.rpc, things) | {"campaign_id": None})


def of_too_much(rest, customer, things, operation):
    request = valid_request(operation.rpc, things)
    more = {"quantity": 100} if "quantity" in request else {"numbers": [*request["numbers"], "+14155559999"]}
    return rest.rpc(operation.rpc, customer.key, **request | more)


def beyond_the_limit_of_holds(rest, customer, things, operation):
    for _ in range(10):
        assert rest.rpc("HoldNumbers", customer.key, numbers=customer.numbers(100)).status == 200
    return rest.rpc("HoldNumbers", customer.key, numbers=customer.numbers(1))


def with_a_used_key(rest, customer, things, operation):
    key = things.order_key()
    return rest.rpc(operation.rpc, customer.key, header_key=key, **valid_request(operation.rpc, things))


def with_a_long_body(rest, customer, things, operation):
    return send(rest, operation, customer.key, valid_request(operation.rpc, things), body=b" " * 70_000)


def with_another_media_type(rest, customer, things, operation):
    route, request = route_of(operation.rpc), valid_request(operation.rpc, things)
    headers = {"content-type": "application/grpc"}
    return of_httpx(rest.client.request(route.verb, route.path(request), headers=headers))


def with_many_headers(rest, customer, things, operation):
    many = [(f"x-{i}", "x") for i in range(101)]
    return send(rest, operation, customer.key, valid_request(operation.rpc, things), headers=many)


PROVOKED = {
    (400, "INVALID_INPUT"): with_unknown_parameter,
    (400, "VALIDATION_FAILED"): with_malformed_id,
    (401, "UNAUTHORIZED"): without_key,
    (402, "INSUFFICIENT_CREDIT"): of_a_poor_customer,
    (403, "FORBIDDEN"): without_scope,
    (404, "NOT_FOUND"): of_something_unknown,
    (409, "INSUFFICIENT_INVENTORY"): of_too_much,
    (409, "LIMIT_EXCEEDED"): beyond_the_limit_of_holds,
    (413, "PAYLOAD_TOO_LARGE"): with_a_long_body,
    (415, "UNSUPPORTED_MEDIA_TYPE"): with_another_media_type,
    (422, "IDEMPOTENCY_KEY_REUSED"): with_a_used_key,
    (422, "VALIDATION_FAILED"): with_malformed_key,
    (431, "HEADERS_TOO_LARGE"): with_many_headers,
}
IN_OTHER_TESTS = {
    (408, "REQUEST_TIMEOUT"),
    (409, "IDEMPOTENCY_IN_PROGRESS"),
    (426, "UPGRADE_REQUIRED"),
    (429, "RATE_LIMITED"),
    (500, "INTERNAL"),
    (503, "UNAVAILABLE"),
    (504, "TIMEOUT"),
}
CASES = [(each, *refusal) for each in OPERATIONS for refusal in each.refusals() if refusal not in IN_OTHER_TESTS]


@pytest.mark.parametrize(
    ("operation", "status", "code"), CASES, ids=[f"{each.rpc}-{status}-{code}" for each, status, code in CASES]
)
def test_a_refusal_is_as_documented(rest, customer, things, operation, status, code):
    response = PROVOKED[status, code](rest, customer, things, operation)
    assert_documented_as(operation, response, status, code)


def test_a_write_whose_key_is_in_use_is_as_documented(rest, grpc_edge_call, service):
    """The key is used by a call with a later deadline, which waits for another server."""
    insert = text("INSERT INTO idempotency_key SELECT :id, 'k', '', :id, '', clock_timestamp()")
    customers = {rpc: Customer.open(service.database.engine) for rpc in WRITES}
    requests = {rpc: valid_request(rpc, Things(rest, customer)) for rpc, customer in customers.items()}

    def call_by(transport, rpc):
        return transport.rpc(rpc, customers[rpc].key, header_key="k", **requests[rpc])

    def refused(rpc):
        # If the call over REST comes first, it waits for the other server itself, and is 503.
        return next(each for _ in range(5) if (each := call_by(rest, rpc)).status != 503)

    with service.database.engine.connect() as other, ThreadPoolExecutor(2 * len(WRITES)) as threads:
        for customer in customers.values():
            other.execute(insert, {"id": customer.id})
        first = [threads.submit(call_by, grpc_edge_call, rpc) for rpc in WRITES]
        responses = list(threads.map(refused, WRITES))
        other.rollback()
        assert [each.result().status for each in first] == [200] * len(WRITES)
    for rpc, response in zip(WRITES, responses, strict=True):
        assert_documented_as(BY_RPC[rpc], response, 409, "IDEMPOTENCY_IN_PROGRESS")


def test_another_method_is_as_documented(rest):
    for template in {operation.template for operation in OPERATIONS}:
        path = template.replace("{id}", UNKNOWN_ID)
        response = rest.send("PUT", path, None)
        assert response.status == 405
        documented = COMPONENTS["responses"]["MethodNotAllowed"]
        assert faults(content_of(documented)["schema"], response.body) == []
        allowed = response.headers["allow"].split(", ")
        assert allowed == [verb for verb in ("DELETE", "GET", "PATCH", "POST") if operation_of(verb, path)]


# ---------------------------------------------------------------- refusals of the edge


def head_of(operation, version="1.1"):
    target = operation.template.replace("{id}", UNKNOWN_ID)
    return f"{operation.verb} {target} HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\n"


def on_the_wire(port, request_text):
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(request_text.encode())
        head, _, body = connection.recv(65536).decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Response(int(status.split(" ")[1]), json.loads(body), headers)


@pytest.mark.parametrize(
    ("code", "request_text"),
    [
        ("UPGRADE_REQUIRED", lambda operation: head_of(operation, "1.0") + "\r\n"),
        ("REQUEST_TIMEOUT", head_of),
    ],
)
def test_a_request_that_is_old_or_late_is_refused_as_documented(service, code, request_text):
    texts = [request_text(operation) for operation in OPERATIONS]
    with ThreadPoolExecutor(len(texts)) as threads:
        responses = list(threads.map(lambda text: on_the_wire(service.settings.rest_port, text), texts))
    for operation, response in zip(OPERATIONS, responses, strict=True):
        assert_documented_as(operation, response, ERRORS[Code(code)].http_status, code)


def crash(request, context):
    raise RuntimeError("secret")


def hang(request, context):
    time.sleep(1)


@pytest.mark.parametrize(
    ("code", "behaviour", "limits"),
    [
        ("RATE_LIMITED", crash, {"rate_limit_per_key": 1}),
        ("INTERNAL", crash, {}),
        ("UNAVAILABLE", None, {}),
        ("TIMEOUT", hang, {"rest_deadline_ms": 200}),
    ],
)
def test_a_call_without_a_good_server_is_refused_as_documented(tmp_path, code, behaviour, limits):
    settings = local_settings(tmp_path, workers=1, **limits)
    status = ERRORS[Code(code)].http_status
    with ExitStack() as stack:
        if behaviour:
            stack.enter_context(running_server(settings.grpc_port, behaviour))
        stack.enter_context(running_edge(settings))
        if behaviour:
            wait_until_ready(settings)
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{settings.rest_port}"))
        for operation in OPERATIONS:
            response = next(each for each in sent_again(client, operation) if each.status == status)
            assert_documented_as(operation, response, status, code)


def sent_again(client, operation):
    """Yield the responses to the example of a request, sent over and over."""
    route, request = route_of(operation.rpc), operation.example()
    headers = JSON | {"authorization": authorization("am_live_" + "0" * 44)}
    for _ in range(1000):
        if route.takes_body:
            content = json.dumps(route.beside_path(request))
            response = client.request(route.verb, route.path(request), content=content, headers=headers)
        else:
            response = client.request(
                route.verb, route.path(request), params=route.beside_path(request), headers=headers
            )
        yield of_httpx(response)
