"""Which requests the edge refuses over REST, which it forwards, and the headers and ids of its responses."""

import json
import re
import socket

import httpx
import pytest

from server.config import REQUEST_BODY_BYTES_MAX
from tests.support.callers import ROUTE, TIMEOUT_SECONDS, ULID, exactly, failure
from tests.support.rest import JSON, REFUSED, assert_clean, assert_refused

pytestmark = pytest.mark.usefixtures("no_script_error")

# ---------------------------------------------------------------- paths, methods, media types, sizes


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/phone-number",
        "/v1/phone-numberss",
        "/v1/phone-numbers/",
        "/v1/phone-numbers;x",
        "/v1/phone-numbers%20",
        "/v1/phone-numbers/orders/",
        "/v1/phone-numbers/order/x",
        "/v1/phone-numbers/orders/x/y",
        "/v1/phone-numbers/x/campaigns",
        "/v1/phone-numbers/x/campaign/",
        "/v1/phone-numbers/bulk/release/x",
        "/v1//phone-numbers/orders",
        "//v1/phone-numbers/orders",
        "/V1/phone-numbers/orders",
        "/v2/phone-numbers/orders",
        "/v1/phone_numbers/orders",
        "/healthz/",
        "/ordernumbers.v1.PhoneNumberService/OrderNumbers",
        "/grpc.health.v1.Health/Check",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404(edge, method, path):
    assert_refused(edge.request(method, "/", extensions=exactly(path), headers=JSON), 404)


@pytest.mark.parametrize(
    "query", ["label=x", "label", "=", "numbers=%2B14155550100", "x=1", "a.b=c", "%6cabel=x", "callback=alert(1)"]
)
def test_an_unknown_query_parameter_is_400(edge, query):
    name = query.partition("=")[0]
    details = {name: "unknown parameter"} if re.fullmatch(r"[\w.]+", name) else None
    assert_refused(edge.post(f"{ROUTE}?{query}", content=b"{}", headers=JSON), 400, details)


def test_an_empty_query_is_accepted(edge):
    assert edge.post(f"{ROUTE}?", content=b"{}", headers=JSON).status_code == 401


@pytest.mark.parametrize(
    "media_type",
    [
        None, "", "text/plain", "text/json", "application/jsonx", "application/json+x", "application/protobuf",
        "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json,text/plain",
        "application/grpc", "application/grpc+json", "application/grpc+proto", "application/grpc-web",
        "application/grpc-web+json",
    ],
)  # fmt: skip
def test_another_media_type_is_415(edge, media_type):
    headers = {} if media_type is None else {"content-type": media_type}
    assert_refused(edge.post(ROUTE, content=b'{"numbers":["+14155550100"]}', headers=headers), 415)


@pytest.mark.parametrize(
    "media_type", ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;x=y"]
)
def test_every_spelling_of_the_json_media_type_is_accepted(edge, media_type):
    assert edge.post(ROUTE, content=b"{}", headers={"content-type": media_type}).status_code == 401


def padded(order, size):
    return json.dumps(order).encode().ljust(size)


def in_chunks(body, size=1000):
    for at in range(0, len(body), size):
        yield body[at : at + size]


@pytest.mark.parametrize("sent", [bytes, in_chunks], ids=["at once", "in chunks"])
def test_the_longest_body_is_accepted_and_one_byte_more_is_413(edge, customer, sent):
    order = {"numbers": customer.numbers(1)}
    headers = JSON | {"authorization": f"Bearer {customer.key}"}
    too_long = edge.post(ROUTE, content=sent(padded(order, REQUEST_BODY_BYTES_MAX + 1)), headers=headers)
    assert_refused(too_long, 413)
    assert customer.owned() == set()
    longest = edge.post(ROUTE, content=sent(padded(order, REQUEST_BODY_BYTES_MAX)), headers=headers)
    assert longest.status_code == 200, longest.text
    assert customer.owned() == set(order["numbers"])


def test_a_body_sent_byte_by_byte_is_read_whole(edge, customer):
    order = {"numbers": customer.numbers(1)}
    body = in_chunks(json.dumps(order).encode(), size=1)
    response = edge.post(ROUTE, content=body, headers=JSON | {"authorization": f"Bearer {customer.key}"})
    assert response.status_code == 200
    assert customer.owned() == set(order["numbers"])


# ---------------------------------------------------------------- headers in and out


def test_a_success_has_an_id_and_no_internal_headers_or_trailers(service, customer):
    order = {"numbers": customer.numbers(1)}
    headers = JSON | {"authorization": f"bearer {customer.key}"}
    with httpx.Client(base_url=service.rest_url, http1=False, http2=True) as client:
        response = client.post(ROUTE, json=order, headers=headers)
    assert response.status_code == 200
    assert_clean(response.headers)
    assert ULID.fullmatch(response.headers["x-request-id"])
    ours = {"x-request-id", "cache-control", "x-content-type-options"}
    assert set(response.headers) == {"content-type", "content-length", "date", "server"} | ours


def test_a_401_names_the_authentication_scheme(edge):
    response = edge.post(ROUTE, json={"numbers": []})
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert_clean(response.headers)
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-request-id": "01ARZ3NDEKTSV4RRFFQ69G5FAV"},
        {"x-request-id": "5f0c3b1e-3f9b-4f5f-9a7c-2f6f7d1c9b1a"},
        {"x-request-id": "mine"},
        {"x-request-id": ""},
        {"x-request-id": "mine", "x-forwarded-for": "10.0.0.1", "x-envoy-internal": "true"},
    ],
)
def test_a_clients_own_request_id_is_ignored(edge, headers):
    responses = [
        edge.post(ROUTE, content=b"{}", headers=JSON | headers),
        edge.post(ROUTE, content=b"x", headers=JSON | headers),
        edge.get("/healthz", headers=headers),
    ]
    ids = [response.headers["x-request-id"] for response in responses]
    assert all(ULID.fullmatch(request_id) for request_id in ids)
    assert len({headers["x-request-id"], *ids}) == 4
    assert [response.json()["error"]["request_id"] for response in responses[:2]] == ids[:2]


@pytest.mark.parametrize(
    "headers",
    [
        {"grpc-timeout": "1n"},
        {"grpc-timeout": "soon"},
        {"grpc-encoding": "gzip"},
        {"grpc-accept-encoding": "gzip"},
        {"grpc-status": "13"},
        {"http-status": "500"},
        {"te": "trailers"},
        {"x-bin": "%%%"},
        {"grpc-status-details-bin": "x"},
        {"content-encoding": "gzip"},
        {"accept": "text/html"},
        {"accept-encoding": "gzip, br"},
        {"expect": "100-continue"},
        {"cookie": "a=b"},
        {"x-envoy-upstream-rq-timeout-ms": "1"},
        {"x-envoy-retry-on": "5xx"},
        {"x-envoy-original-path": "/healthz"},
        {"x-http-method-override": "DELETE"},
        {"x-forwarded-host": "evil.example"},
        {"idempotency-key": "k"},
        {"x-long": "x" * 8000},
    ],
    ids=str,
)
def test_other_headers_of_a_client_change_nothing(edge, customer, headers):
    order = {"numbers": customer.numbers(1)}
    response = edge.post(ROUTE, json=order, headers={"authorization": f"Bearer {customer.key}", **headers})
    assert response.status_code == 200, response.text
    assert_clean(response.headers)
    assert customer.owned() == set(order["numbers"])


def test_a_call_with_two_keys_is_401(edge, customer):
    key = f"Bearer {customer.key}"
    response = edge.post(ROUTE, content=b"{}", headers=[("authorization", key), ("authorization", key), *JSON.items()])
    assert response.status_code == 401


# ---------------------------------------------------------------- what is not proper HTTP

START = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CHUNKED = START + "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"


@pytest.mark.parametrize(
    "request_text",
    [
        "GARBAGE\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET /v1%2Fphone-numbers/orders HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n",
        f"ORDER {ROUTE} HTTP/1.1\r\nhost: x\r\n\r\n",
        START + "content_length: 2\r\n\r\n{}",
        START + "content-length: x\r\n\r\n{}",
        START + "content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        START + "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        START + "transfer-encoding: gzip\r\n\r\n{}",
        START + "transfer-encoding: chunked\r\n\r\nzz\r\n",
        START + "upgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        START + "x: \1\r\n\r\n",
        START + "x y: z\r\n\r\n",
        START + "authorization: Bearer \xa0\r\ncontent-length: 2\r\n\r\n{}",
        START + "host: y\r\ncontent-length: 2\r\n\r\n{}",
        START + "host: x\r\ncontent-length: 2\r\n\r\n{}",
        CHUNKED + "x: \1\r\n\r\n",
    ],
    ids=lambda text: text[:20] + "…" + text[-20:],
)
def test_a_request_that_is_not_proper_http_is_400(service, request_text):
    assert_refused_on_the_wire(service, request_text, 400)


MANY = "".join(f"x-{i}: x\r\n" for i in range(101))


@pytest.mark.parametrize("size", [17_000, 60_000, 140_000])
@pytest.mark.parametrize("start", [START, CHUNKED], ids=["headers", "trailers"])
def test_headers_or_trailers_over_16_kb_are_431(service, start, size):
    assert_refused_on_the_wire(service, start + f"x: {'x' * size}\r\n\r\n", 431)


@pytest.mark.parametrize("start", [START, CHUNKED], ids=["headers", "trailers"])
def test_more_than_100_headers_or_trailers_are_431(service, start):
    assert_refused_on_the_wire(service, start + MANY + "\r\n", 431)


def test_options_for_the_whole_server_is_404(service):
    assert_refused_on_the_wire(service, "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 404)


def test_http_1_0_is_426(service):
    assert_refused_on_the_wire(service, "GET / HTTP/1.0\r\n\r\n", 426)


def test_headers_that_are_not_complete_in_time_are_408(service):
    assert_refused_on_the_wire(service, START, 408)


def test_trailers_of_a_client_are_ignored(service, customer):
    body = json.dumps({"numbers": customer.numbers(1)})
    start = START + f"authorization: Bearer {customer.key}\r\ntransfer-encoding: chunked\r\n\r\n"
    response = on_the_wire(service, f"{start}{len(body):x}\r\n{body}\r\n0\r\nx-bin: %%\r\ngrpc-timeout: 1n\r\n\r\n")
    assert response.startswith("HTTP/1.1 200 ")


def on_the_wire(service, request_text):
    host, port = service.edge_target.split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(request_text.encode("latin-1"))
        return connection.recv(65536).decode()


def assert_refused_on_the_wire(service, request_text, status_code):
    head, _, rest = on_the_wire(service, request_text).partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status.startswith(f"HTTP/1.1 {status_code} ")
    assert json.loads(rest) == failure(*REFUSED[status_code], headers["x-request-id"])
    assert ULID.fullmatch(headers["x-request-id"])
    assert headers["content-type"] == "application/json"
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
