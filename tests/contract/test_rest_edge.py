"""What the edge answers over REST by itself, and what it lets through: strict JSON, envelopes, clean headers, ids."""

import json
import re
import socket
import time
from contextlib import ExitStack

import grpc
import httpx
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import status_pb2
from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamEnded, TrailersReceived
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ordernumbers.v1.errors_pb2 import Error, ErrorResponse
from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_number_service_pb2_grpc import PhoneNumberServiceStub
from server.config import REQUEST_BODY_BYTES_MAX
from server.errors import AT_THE_EDGE, ERRORS
from tests.contract.edges import running_edge, running_server, sell, stat, wait_until, wait_until_ready
from tests.support.callers import ROUTE, TIMEOUT_SECONDS, ULID, failure
from tests.support.stack import local_settings

JSON = {"content-type": "application/json"}
INTERNAL_HEADER = re.compile(r"grpc-|x-envoy-|http-status")
REFUSED = {ERRORS[code].http_status: (code, ERRORS[code].message) for code in AT_THE_EDGE}


@pytest.fixture(scope="module", params=["HTTP/1.1", "HTTP/2"])
def edge(service, request):
    http2 = request.param == "HTTP/2"
    with httpx.Client(base_url=service.rest_url, http1=not http2, http2=http2, timeout=TIMEOUT_SECONDS) as client:
        yield client


@pytest.fixture(autouse=True, scope="module")
def no_script_error(service):
    """Envoy lets a request through when a script fails on it."""
    yield
    assert stat(service.settings, "http.edge.lua.errors") == 0


def assert_clean(headers):
    assert [name for name in headers if INTERNAL_HEADER.match(name)] == []


def assert_not_kept_nor_guessed(answer):
    """By caches, and by browsers that guess what an answer is."""
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")


def assert_refused(answer, status, details=None):
    assert_clean(answer.headers)
    assert_not_kept_nor_guessed(answer)
    request_id = answer.headers["x-request-id"]
    assert ULID.fullmatch(request_id)
    assert (answer.status_code, answer.json()) == (status, failure(*REFUSED[status], request_id, details=details))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


# ---------------------------------------------------------------- strict JSON

MALFORMED = [
    # not JSON at all, or not only JSON
    "", " ", "\n", "null", "true", "1", '"x"', "[]", "[{}]", "x", "{", "}", "{}{}", "{},", "{}x", "{}\0", "\0{}",
    "{} {}", "\ufeff{}", "\v{}", "\u00a0{}", "// x\n{}", "/* x */{}", "{}//", "{/**/}", "<a/>", "numbers=%2B1",
    ")]}',\n{}",
    # punctuation
    "{,}", '{"label"}', '{"label":}', '{"label":"x",}', '{"label" "x"}', '{"label"="x"}', '{"label"::"x"}', '{:"x"}',
    '{"label":"x" "status_url":"x"}', '{"label":"x",,"status_url":"x"}', '{"label":"x"', '{"label":"x"]',
    '["label":"x"]',
    '{"numbers":[,]}', '{"numbers":["x",]}', '{"numbers":["x" "y"]}', '{"numbers":["x"', '{"numbers":["x"}',
    '{"numbers":["x",,"y"]}', '{"numbers":]}', '{"numbers":["x"]]}', '{{"label":"x"}}', '{"label":"x";}',
    # strings
    "{'label':'x'}", '{label:"x"}', '{"label":x}', '{"label":"x}', '{"label":"x\\"}', '{"label":"\\x41"}',
    '{"label":"\\u12"}', '{"label":"\\u12g4"}', '{"label":"\\U0001F600"}', '{"label":"\\a"}', "{\"label\":\"\\'\"}",
    '{"label":"\n"}', '{"label":"\t"}', '{"label":"\0"}', '{"label":"\x1f"}', '{"label":"\\\n"}', '{"label":"""x"""}',
    '{"label":"x"+"y"}', '{"label":"x" "y"}', '{"label":`x`}', '{"label":"\\ud800"}', '{"label":"\\ude00\\ud83d"}',
    '{"label":"\\ud83d\\u0041"}', '{"la\nbel":"x"}', '{"\\ud800":"x"}',
    # literals that are none
    '{"label":Null}', '{"label":NULL}', '{"label":nul}', '{"label":nullx}', '{"label":undefined}', '{"label":NaN}',
    '{"label":Infinity}', '{"label":None}', '{"label":+1}', '{"label":.5}',
]  # fmt: skip
MALFORMED_BYTES = [
    b'{"label":"\xff"}', b'{"label":"\xc0\x80"}', b'{"label":"\xed\xa0\x80"}', b'{"label":"\xf4\x90\x80\x80"}',
    b'{"label":"\xe2\x82"}', b'{"\xff":"x"}', '{"label":"x"}'.encode("utf-16"), '{"label":"x"}'.encode("utf-16-le"),
    '{"label":"x"}'.encode("utf-32"), b"\x1f\x8b\x08\x00", b"\x00\x00\x00\x00\x02\x0a\x00",
]  # fmt: skip


@pytest.mark.parametrize("body", [*(text.encode() for text in MALFORMED), *MALFORMED_BYTES], ids=repr)
def test_400_what_is_not_strict_json(edge, body):
    assert_refused(edge.post(ROUTE, content=body, headers=JSON), 400)


STRING, LIST = "must be a string", "must be a list"


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ('{"label":1}', {"label": STRING}),
        ('{"label":-0.5e3}', {"label": STRING}),
        ('{"label":true}', {"label": STRING}),
        ('{"label":["x"]}', {"label": STRING}),
        ('{"label":{"x":"y"}}', {"label": STRING}),
        ('{"numbers":[],"campaign_id":0}', {"campaign_id": STRING}),
        ('{"numbers":"+14155550100"}', {"numbers": LIST}),
        ('{"numbers":{"0":"+14155550100"}}', {"numbers": LIST}),
        ('{"numbers":14155550100}', {"numbers": LIST}),
        ('{"numbers":["+14155550100",14155550101]}', {"numbers[1]": STRING}),
        ('{"numbers":[["+14155550100"]]}', {"numbers[0]": STRING}),
        ('{"numbers":[null]}', {"numbers[0]": STRING}),
        ('{"number":["+14155550100"]}', {"number": "unknown member"}),
        ('{"inboundUrl":"https://example.com"}', {"inboundUrl": "unknown member"}),
        ('{"Label":"x"}', {"Label": "unknown member"}),
        ('{"success":true}', {"success": "unknown member"}),
        ('{"label":"x","label":"x"}', {"label": "repeated member"}),
        ('{"label":null,"label":"x"}', {"label": "repeated member"}),
        ('{"numbers":[],"numbers":[]}', {"numbers": "repeated member"}),
        ('{"label":"x","\\u006cabel":"x"}', {"label": "repeated member"}),
        # names not fit to be repeated
        ('{"<script>":"x"}', None),
        ('{"\\u0000":"x"}', None),
        ('{"":"x"}', None),
        (f'{{"{"x" * 65}":"x"}}', None),
    ],
)
def test_400_tells_the_member_at_fault(edge, body, details):
    assert_refused(edge.post(ROUTE, content=body, headers=JSON), 400, details)


def test_null_is_as_good_as_absent_and_names_may_be_escaped(rest, customer):
    numbers = customer.numbers(1)
    body = json.dumps({"numbers": numbers, "label": None, "inbound_url": None, "campaign_id": None})
    answer = rest.post(customer.key, body.replace("numbers", "\\u006eumber\\u0073", 1).encode())
    assert answer.status == 200
    assert "label" not in answer.body["data"][0]


def test_escapes_and_blanks_of_all_kinds_are_read(rest, customer):
    (number,) = customer.numbers(1)
    label = 'é東🙂/\\" é東🙂'
    body = ' \r\n\t{ "label"\t:\r"é東🙂\\/\\\\\\"\\u0020\\u00e9\\u6771\\ud83d\\uDE42" ,\n"numbers" : [ "NUMBER" ] } \n'
    answer = rest.post(customer.key, body.replace("NUMBER", number.replace("+", "\\u002B")).encode())
    assert (answer.status, answer.body["data"][0]["label"]) == (200, label)
    assert customer.label_of(number) == label


class NotStrict(Exception):
    pass


def is_strict_order(body):
    """An oracle of its own: is this JSON of the documented shape, no member unknown, repeated or of a wrong type?"""

    def members(pairs):
        if len(dict(pairs)) < len(pairs):
            raise NotStrict
        return dict(pairs)

    def constant(_):
        raise NotStrict

    try:
        order = json.loads(body.decode(), object_pairs_hook=members, parse_constant=constant)
        json.dumps(order, ensure_ascii=False).encode()  # not so of lone surrogates
    except (NotStrict, ValueError, RecursionError):
        return False
    texts = {"inbound_url", "status_url", "campaign_id", "label"}
    if not isinstance(order, dict) or not order.keys() <= texts | {"numbers"} or body.startswith(b"\xef\xbb\xbf"):
        return False
    numbers = order.pop("numbers", None)
    listed = numbers is None or (isinstance(numbers, list) and all(isinstance(n, str) for n in numbers))
    return listed and all(text is None or isinstance(text, str) for text in order.values())


PIECES = [
    *'{}[]:,"\\ \n\t\0\x7f\x1f0123456789eE+-.', "null", "true", "NaN", '"numbers"', '"label"', '"x"', '"+1"', "\\u00e9",
    "\\ud83d\\ude42", "\\ud800", "\\/", "é", "🙂", "\ufeff", '"numbers":', '"label":', ",,", "[[", "{{", "//", "'",
]  # fmt: skip
ORDERS = st.fixed_dictionaries(
    {},
    optional={
        "numbers": st.none() | st.lists(st.text(max_size=5) | st.none(), max_size=3),
        "label": st.none() | st.text(max_size=8) | st.integers() | st.booleans(),
        "inbound_url": st.text(max_size=5),
        "label2": st.text(max_size=2),
    },
)
WRITTEN = st.builds(
    lambda order, ascii_only, indent: json.dumps(order, ensure_ascii=ascii_only, indent=indent).encode(
        errors="surrogatepass"
    ),
    ORDERS,
    st.booleans(),
    st.sampled_from([None, 1]),
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.sampled_from([b"", b"\xff", *(p.encode() for p in PIECES)])),
    max_size=3,
)


@st.composite
def mutated_orders(draw):
    """Well-written orders with a few bytes replaced, taken out or put in."""
    body = draw(WRITTEN)
    for where, removed, piece in draw(EDITS):
        at = round(where * len(body))
        body = body[:at] + piece + body[at + removed :]
    return body


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated_orders())
def test_the_edge_takes_exactly_what_a_strict_reader_takes(service, plain_client, body):
    answer = plain_client.post(ROUTE, content=body, headers=JSON)
    # Without a key: what the edge takes, the server refuses.
    assert answer.status_code == (401 if is_strict_order(body) else 400), body


@pytest.fixture(scope="module")
def plain_client(service):
    with httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client:
        yield client


# ---------------------------------------------------------------- paths, methods, media types, sizes


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/phone-numbers",
        "/v1/phone-numbers/",
        "/v1/phone-numbers/order",
        "/v1/phone-numbers/orderss",
        "/v1/phone-numbers/orders/",
        "/v1/phone-numbers/orders/x",
        "/v1//phone-numbers/orders",
        "//v1/phone-numbers/orders",
        "/V1/phone-numbers/orders",
        "/v2/phone-numbers/orders",
        "/v1/phone_numbers/orders",
        "/v1/phone-numbers/orders;x",
        "/v1/phone-numbers/orders%20",
        "/healthz/",
        "/ordernumbers.v1.PhoneNumberService/OrderNumbers",
        "/grpc.health.v1.Health/Check",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_404_an_unknown_path(edge, method, path):
    assert_refused(edge.request(method, edge.base_url.join("/").copy_with(raw_path=path.encode()), headers=JSON), 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_405_tells_the_method_there_is(edge, method):
    answer = edge.request(method, ROUTE, headers=JSON)
    assert_refused(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_405_to_head_has_no_body(edge):
    for _ in range(2):  # on one connection: a body would be read as the next answer
        answer = edge.head(ROUTE)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")
        assert ULID.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    "query", ["label=x", "label", "=", "numbers=%2B14155550100", "x=1", "a.b=c", "%6cabel=x", "callback=alert(1)"]
)
def test_400_an_unknown_query_parameter(edge, query):
    name = query.partition("=")[0]
    details = {name: "unknown parameter"} if re.fullmatch(r"[\w.]+", name) else None
    assert_refused(edge.post(f"{ROUTE}?{query}", content=b"{}", headers=JSON), 400, details)


def test_an_empty_query_is_none(edge):
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
def test_415_another_media_type(edge, media_type):
    headers = {} if media_type is None else {"content-type": media_type}
    assert_refused(edge.post(ROUTE, content=b'{"numbers":["+14155550100"]}', headers=headers), 415)


@pytest.mark.parametrize(
    "media_type", ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json ;x=y"]
)
def test_json_by_any_of_its_names_passes(edge, media_type):
    assert edge.post(ROUTE, content=b"{}", headers={"content-type": media_type}).status_code == 401


def padded(order, size):
    return json.dumps(order).encode().ljust(size)


def in_chunks(body, size=1000):
    for at in range(0, len(body), size):
        yield body[at : at + size]


@pytest.mark.parametrize("sent", [bytes, in_chunks], ids=["at once", "in chunks"])
def test_the_longest_body_passes_and_one_byte_more_is_413(edge, customer, sent):
    order = {"numbers": customer.numbers(1)}
    headers = JSON | {"authorization": f"Bearer {customer.key}"}
    too_long = edge.post(ROUTE, content=sent(padded(order, REQUEST_BODY_BYTES_MAX + 1)), headers=headers)
    assert_refused(too_long, 413)
    assert customer.owned() == set()
    longest = edge.post(ROUTE, content=sent(padded(order, REQUEST_BODY_BYTES_MAX)), headers=headers)
    assert longest.status_code == 200, longest.text
    assert customer.owned() == set(order["numbers"])


def test_a_body_in_single_bytes_is_read_whole(edge, customer):
    order = {"numbers": customer.numbers(1)}
    body = in_chunks(json.dumps(order).encode(), size=1)
    answer = edge.post(ROUTE, content=body, headers=JSON | {"authorization": f"Bearer {customer.key}"})
    assert answer.status_code == 200
    assert customer.owned() == set(order["numbers"])


# ---------------------------------------------------------------- headers in and out


def test_a_success_has_an_id_and_no_internal_headers_or_trailers(service, customer):
    order = {"numbers": customer.numbers(1)}
    headers = JSON | {"authorization": f"bearer {customer.key}"}
    with httpx.Client(base_url=service.rest_url, http1=False, http2=True) as client:
        answer = client.post(ROUTE, json=order, headers=headers)
    assert answer.status_code == 200
    assert_clean(answer.headers)
    assert ULID.fullmatch(answer.headers["x-request-id"])
    ours = {"x-request-id", "cache-control", "x-content-type-options"}
    assert set(answer.headers) == {"content-type", "content-length", "date", "server"} | ours


def test_401_names_the_scheme(edge):
    answer = edge.post(ROUTE, json={"numbers": []})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert_clean(answer.headers)
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


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
def test_a_clients_own_request_id_is_not_believed(edge, headers):
    answers = [
        edge.post(ROUTE, content=b"{}", headers=JSON | headers),
        edge.post(ROUTE, content=b"x", headers=JSON | headers),
        edge.get("/healthz", headers=headers),
    ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(ULID.fullmatch(request_id) for request_id in ids)
    assert len({headers["x-request-id"], *ids}) == 4
    assert [answer.json()["error"]["request_id"] for answer in answers[:2]] == ids[:2]


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
def test_a_clients_headers_are_harmless(edge, customer, headers):
    order = {"numbers": customer.numbers(1)}
    answer = edge.post(ROUTE, json=order, headers={"authorization": f"Bearer {customer.key}", **headers})
    assert answer.status_code == 200, answer.text
    assert_clean(answer.headers)
    assert customer.owned() == set(order["numbers"])


def test_a_repeated_key_is_no_key(edge, customer):
    key = f"Bearer {customer.key}"
    answer = edge.post(ROUTE, content=b"{}", headers=[("authorization", key), ("authorization", key), *JSON.items()])
    assert answer.status_code == 401


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
def test_400_what_is_not_proper_http(service, request_text):
    assert_refused_on_the_wire(service, request_text, 400)


MANY = "".join(f"x-{i}: x\r\n" for i in range(101))


@pytest.mark.parametrize("size", [17_000, 60_000, 140_000])
@pytest.mark.parametrize("start", [START, CHUNKED], ids=["headers", "trailers"])
def test_431_headers_or_trailers_over_16_kb(service, start, size):
    assert_refused_on_the_wire(service, start + f"x: {'x' * size}\r\n\r\n", 431)


@pytest.mark.parametrize("start", [START, CHUNKED], ids=["headers", "trailers"])
def test_431_more_than_100_headers_or_trailers(service, start):
    assert_refused_on_the_wire(service, start + MANY + "\r\n", 431)


def test_404_the_server_as_a_whole(service):
    assert_refused_on_the_wire(service, "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 404)


def test_426_an_old_version_of_http(service):
    assert_refused_on_the_wire(service, "GET / HTTP/1.0\r\n\r\n", 426)


def test_408_headers_that_are_not_complete_in_time(service):
    assert_refused_on_the_wire(service, START, 408)


def test_trailers_are_ignored(service, customer):
    body = json.dumps({"numbers": customer.numbers(1)})
    start = START + f"authorization: Bearer {customer.key}\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = on_the_wire(service, f"{start}{len(body):x}\r\n{body}\r\n0\r\nx-bin: %%\r\ngrpc-timeout: 1n\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200 ")


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
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}|[0-9a-f-]{36}", headers["x-request-id"])
    assert headers["content-type"] == "application/json"
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


# ---------------------------------------------------------------- health, and servers that are missing or broken


def test_healthz_is_ok_while_a_server_serves(edge):
    for answer in (edge.get("/healthz"), edge.head("/healthz")):
        assert (answer.status_code, answer.content) == (200, b"")
        assert_clean(answer.headers)
        assert_not_kept_nor_guessed(answer)
        assert ULID.fullmatch(answer.headers["x-request-id"])
    other = edge.post("/healthz")
    assert_refused(other, 405)
    assert other.headers["allow"] == "GET, HEAD"
    assert_refused(edge.get("/healthz?x=1"), 400, {"x": "unknown parameter"})
    assert_refused(edge.get("/healthz", headers={"content-type": "application/grpc"}), 415)


def test_503_when_no_server_is_there(tmp_path):
    own = local_settings(tmp_path, workers=1)
    with running_edge(own), httpx.Client(base_url=f"http://127.0.0.1:{own.rest_port}") as client:
        assert_refused(client.get("/healthz"), 503)
        assert_refused(client.post(ROUTE, json={"numbers": []}), 503)
        assert_refused(client.post(ROUTE, content=b"x", headers=JSON), 400)
        assert (client.head("/healthz").status_code, client.head("/healthz").content) == (503, b"")
        with grpc.insecure_channel(f"127.0.0.1:{own.rest_port}") as channel:
            call = PhoneNumberServiceStub(channel).OrderNumbers.future(OrderNumbersRequest())
            assert call.code() == grpc.StatusCode.UNAVAILABLE
        assert stat(own, "http.edge.lua.errors") == 0


def crash(request, context):
    raise RuntimeError("secret")


def hang(request, context):
    time.sleep(1)


def abort_plainly(request, context):
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "secret")


def abort_after_headers(request, context):
    context.send_initial_metadata([("x-early", "1")])
    context.abort(grpc.StatusCode.DATA_LOSS, "secret")


def answer_at_length(request, context):
    answer = sell(request, context)
    answer.data[0].label = "x" * 3_000_000
    return answer


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [(crash, 500), (hang, 504), (abort_plainly, 400), (abort_after_headers, 500), (answer_at_length, 200)],
)
def test_a_broken_server_tells_nothing_internal(tmp_path, behaviour, status):
    own = local_settings(tmp_path, rest_deadline_ms=500, workers=1)
    with running_server(own.grpc_port, behaviour), running_edge(own):
        wait_until_ready(own)
        answer = httpx.post(f"http://127.0.0.1:{own.rest_port}{ROUTE}", json={"numbers": ["x"]})
        assert stat(own, "http.edge.lua.errors") == 0
    if status == 200:
        assert len(answer.json()["data"][0]["label"]) == 3_000_000
    else:
        assert_refused(answer, status)


def refuse_after_headers(request, context):
    """As our server refuses, but late: everything is in the trailers."""
    context.send_initial_metadata([("x-early", "1")])
    request_id = dict(context.invocation_metadata())["x-request-id"]
    response = Any()
    response.Pack(ErrorResponse(error=Error(code="INSUFFICIENT_CREDIT", message="poor", request_id=request_id)))
    details = status_pb2.Status(code=9, message="poor", details=[response]).SerializeToString()
    trailers = [("http-status", "402"), ("x-request-id", request_id), ("grpc-status-details-bin", details)]
    context.set_trailing_metadata(trailers)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "poor")


def sell_with_trailers(request, context):
    context.set_trailing_metadata([("http-status", "200"), ("x-request-id", "x"), ("x-other", "x")])
    return sell(request, context)


def trailers_over_http2(port):
    """Of an order over REST: httpx does not show them."""
    connection = H2Connection()
    connection.initiate_connection()
    path = [(":method", "POST"), (":path", ROUTE), (":scheme", "http"), (":authority", "x")]
    connection.send_headers(1, [*path, *JSON.items()])
    connection.send_data(1, b"{}", end_stream=True)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as wire:
        events = []
        while not any(isinstance(event, StreamEnded) for event in events):
            wire.sendall(connection.data_to_send())
            events += connection.receive_data(wire.recv(65536))
    assert any(isinstance(event, ResponseReceived) for event in events)
    return [event for event in events if isinstance(event, TrailersReceived)]


def test_trailers_end_at_the_edge(tmp_path):
    own = local_settings(tmp_path, workers=1)
    for behaviour, status in ((refuse_after_headers, 402), (sell_with_trailers, 200)):
        with running_server(own.grpc_port, behaviour), running_edge(own):
            wait_until_ready(own)
            answer = httpx.post(f"http://127.0.0.1:{own.rest_port}{ROUTE}", json={})
            assert answer.status_code == status
            assert_clean(answer.headers)
            if status == 402:
                request_id = answer.headers["x-request-id"]
                assert answer.json() == failure("INSUFFICIENT_CREDIT", "poor", request_id)
            assert trailers_over_http2(own.rest_port) == []
            with grpc.insecure_channel(f"127.0.0.1:{own.rest_port}") as channel:
                call = PhoneNumberServiceStub(channel).OrderNumbers.future(OrderNumbersRequest())
                assert "http-status" not in dict(call.trailing_metadata())
                assert "x-request-id" in dict(call.trailing_metadata())


# ---------------------------------------------------------------- native gRPC through the same port


def test_a_client_cannot_order_retries(tmp_path):
    own = local_settings(tmp_path, workers=1)
    calls = []

    def refuse(request, context):
        calls.append(request)
        context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    metadata = [("x-envoy-retry-on", "5xx"), ("x-envoy-retry-grpc-on", "unavailable"), ("x-envoy-max-retries", "3")]
    with running_server(own.grpc_port, refuse), running_edge(own):
        wait_until_ready(own)
        with grpc.insecure_channel(f"127.0.0.1:{own.rest_port}") as channel:
            order = PhoneNumberServiceStub(channel).OrderNumbers
            assert order.future(OrderNumbersRequest(), metadata=metadata).code() == grpc.StatusCode.UNAVAILABLE
        httpx.post(f"http://127.0.0.1:{own.rest_port}{ROUTE}", json={}, headers=dict(metadata))
    assert len(calls) == 2


def test_native_grpc_keeps_its_status_and_gets_the_edges_id(service, customer):
    sent = [("authorization", f"BEARER {customer.key}"), ("x-request-id", "mine"), ("x-envoy-retry-on", "5xx")]
    with grpc.insecure_channel(service.edge_target) as channel:
        order = PhoneNumberServiceStub(channel).OrderNumbers
        for numbers, code in ((customer.numbers(1), "OK"), ([], "INVALID_ARGUMENT")):
            call = order.future(OrderNumbersRequest(numbers=numbers), metadata=sent, timeout=TIMEOUT_SECONDS)
            assert call.code().name == code
            told = [*call.initial_metadata(), *call.trailing_metadata()]
            ids = {value for name, value in told if name == "x-request-id"}
            assert len(ids) == 1
            assert ULID.fullmatch(ids.pop())
            assert [name for name, _ in told if name.startswith(("http-status", "x-envoy-"))] == []


# ---------------------------------------------------------------- which server


def test_an_organizations_calls_go_to_one_server_and_to_another_when_it_is_gone(tmp_path):
    own = local_settings(tmp_path)
    called = []

    def server(port):
        def note_and_sell(request, context):
            called.append(port)
            return sell(request, context)

        return running_server(port, note_and_sell)

    def order(tag, count):
        called.clear()
        for i in range(count):
            key = f"Bearer am_live_{tag:06}{i:038}"
            answer = client.post(ROUTE, json={"numbers": []}, headers={"authorization": key})
            assert answer.status_code == 200, answer.text
        return set(called)

    with ExitStack() as first, ExitStack() as rest, running_edge(own):
        first.enter_context(server(own.grpc_ports[0]))
        rest.enter_context(server(own.grpc_ports[1]))
        wait_until(lambda: stat(own, "cluster.servers.membership_healthy") == 2)
        client = rest.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{own.rest_port}"))
        homes = [order(tag, 8) for tag in range(20)]
        assert all(len(home) == 1 for home in homes)
        assert set.union(*homes) == set(own.grpc_ports)
        first.close()
        assert [order(tag, 2) for tag in range(20)] == [{own.grpc_ports[1]}] * 20
