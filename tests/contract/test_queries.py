"""Which queries, paths and bodies the edge accepts for each route, and that none of them changes another."""

import json

import grpc
import httpx
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from tests.support.callers import RPCS, SERVICE, TIMEOUT_SECONDS, ULID, exactly, query_of, route_of
from tests.support.edge import running_edge, running_server, stat, wait_until_ready
from tests.support.rest import JSON, assert_refused
from tests.support.stack import local_settings

ID = "0190b0a0-0000-7000-8000-000000000001"
OTHER_ID = "0190b0a0-0000-7000-8000-000000000002"
LIST = "/v1/phone-numbers"
ROUTES = {rpc: route_of(rpc) for rpc in RPCS}
WITHOUT_BODY = [rpc for rpc in RPCS if not ROUTES[rpc].takes_body]
WITH_ID = [rpc for rpc in RPCS if ROUTES[rpc].path_fields]
TEMPLATES = sorted({route.template for route in ROUTES.values()})

each_rpc = pytest.mark.parametrize("rpc", RPCS)
each_without_body = pytest.mark.parametrize("rpc", WITHOUT_BODY)
each_with_id = pytest.mark.parametrize("rpc", WITH_ID)


class Recorder:
    """A server that accepts every request. It keeps the name of each request's class, and its fields."""

    def __init__(self):
        self.requests = []

    def __call__(self, request, context):
        rpc = type(request).__name__.removesuffix("Request")
        self.requests.append((rpc, MessageToDict(request, preserving_proto_field_name=True)))
        return GetMessageClass(SERVICE.methods_by_name[rpc].output_type)(success=True)


@pytest.fixture(scope="module")
def recorder():
    return Recorder()


@pytest.fixture(scope="module")
def own_edge(recorder, tmp_path_factory):
    """The settings of an edge in front of the recorder. No script of the edge has failed when the module ends."""
    own = local_settings(tmp_path_factory.mktemp("edge") / ".data", workers=1)
    with running_server(own.grpc_port, recorder), running_edge(own):
        wait_until_ready(own)
        yield own
        assert stat(own, "http.edge.lua.errors") == 0


@pytest.fixture(scope="module", params=["HTTP/1.1", "HTTP/2"])
def client(own_edge, request):
    """A client of that edge, once per version of HTTP."""
    url, http2 = f"http://127.0.0.1:{own_edge.rest_port}", request.param == "HTTP/2"
    with httpx.Client(base_url=url, http1=not http2, http2=http2, timeout=TIMEOUT_SECONDS) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_recorded_yet(recorder):
    recorder.requests.clear()


def send(client, rpc, query="", *, path=None, body=None):
    """Send a request to the route of an RPC. If the route takes a body, it gets an empty object."""
    route = ROUTES[rpc]
    target = (path or route.path({"id": ID})) + (f"?{query}" if query else "")
    sent = {"content": body or b"{}", "headers": JSON} if route.takes_body else {"content": body}
    return client.request(route.verb, "/", extensions=exactly(target), **sent)


def assert_forwarded(response, recorder, rpc, fields):
    assert (response.status_code, recorder.requests) == (200, [(rpc, fields)]), response.text


def assert_refused_here(response, recorder, details=None, status=400):
    """The edge refused the request, and no server has seen it."""
    assert_refused(response, status, details)
    assert recorder.requests == []


# ---------------------------------------------------------------- every route


@each_rpc
def test_each_route_reaches_its_method(client, recorder, rpc):
    assert_forwarded(send(client, rpc), recorder, rpc, {"id": ID} if rpc in WITH_ID else {})


@each_rpc
def test_an_unknown_parameter_is_refused_on_each_route(client, recorder, rpc):
    assert_refused_here(send(client, rpc, "unknown=x"), recorder, {"unknown": "unknown parameter"})


def every_other_verb():
    for template in TEMPLATES:
        allowed = sorted(route.verb for route in ROUTES.values() if route.template == template)
        for verb in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - {*allowed}:
            yield template, verb, ", ".join(allowed)


@pytest.mark.parametrize(("template", "verb", "allowed"), sorted(every_other_verb()))
def test_another_method_is_405_with_the_allowed_ones(client, recorder, template, verb, allowed):
    response = client.request(verb, template.replace("{id}", ID), headers=JSON)
    assert_refused_here(response, recorder, status=405)
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("template", TEMPLATES)
def test_head_is_405_without_a_body(client, recorder, template):
    for _ in range(2):  # on one connection: a body would be read as the next response
        response = client.head(template.replace("{id}", ID))
        assert (response.status_code, response.content, recorder.requests) == (405, b"", [])
        assert ULID.fullmatch(response.headers["x-request-id"])


# ---------------------------------------------------------------- a body where none belongs


@each_without_body
@pytest.mark.parametrize("body", [b"{}", b'{"id":"%s"}' % OTHER_ID.encode(), b"x", b"\0" * 1000])
def test_a_body_is_refused_on_each_route_that_takes_none(client, recorder, rpc, body):
    verb, path = ROUTES[rpc].verb, ROUTES[rpc].path({"id": ID})
    for headers in ({}, JSON):
        assert_refused_here(client.request(verb, path, content=body, headers=headers), recorder)
        in_chunks = iter([body[:1], body[1:]])
        assert_refused_here(client.request(verb, path, content=in_chunks, headers=headers), recorder)


@each_without_body
def test_a_body_of_no_bytes_is_no_body(client, recorder, rpc):
    fields = {"id": ID} if rpc in WITH_ID else {}
    for sent in ({"headers": {"content-length": "0"}}, {"content": iter([])}, {"headers": JSON}):
        recorder.requests.clear()
        response = client.request(ROUTES[rpc].verb, ROUTES[rpc].path({"id": ID}), **sent)
        assert_forwarded(response, recorder, rpc, fields)


# ---------------------------------------------------------------- nothing changes the path


@each_with_id
def test_a_parameter_does_not_change_the_id_in_the_path(client, recorder, rpc):
    for name in ("id", "ID", "id[]", "id.x"):
        assert_refused_here(send(client, rpc, f"{name}={OTHER_ID}"), recorder, {name: "unknown parameter"})
    for name in ("%69d", "id%00", "+id"):
        assert_refused_here(send(client, rpc, f"{name}={OTHER_ID}"), recorder)


@pytest.mark.parametrize("rpc", [rpc for rpc in WITH_ID if ROUTES[rpc].takes_body])
def test_a_member_of_the_body_does_not_change_the_id_in_the_path(client, recorder, rpc):
    body = json.dumps({"id": OTHER_ID}).encode()
    assert_refused_here(send(client, rpc, body=body), recorder, {"id": "unknown member"})
    assert_refused_here(send(client, rpc, body=body.replace(b"i", b"\\u0069", 1)), recorder, {"id": "unknown member"})


@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if ROUTES[rpc].takes_body])
def test_a_parameter_does_not_change_the_body(client, recorder, rpc):
    for field in SERVICE.methods_by_name[rpc].input_type.fields:
        assert_refused_here(send(client, rpc, f"{field.name}=1"), recorder, {field.name: "unknown parameter"})


# As they are sent, and as the server gets them.
SEGMENTS = {
    ID.upper(): ID.upper(), f"%30{ID[1:]}": ID, "x": "x", "%78": "x", "a%20b": "a b", "a+b": "a+b",
    "a%3Fid=x": "a?id=x", "a%23b": "a#b", "a;id=x": "a;id=x", "%25": "%", "%2541": "%41", "%zz": "%zz", "%C3%A9": "é",
    "*": "*", "a:get": "a:get", "x" * 5000: "x" * 5000,
}  # fmt: skip


def paths_with(rpc, segments):
    return [ROUTES[rpc].template.replace("{id}", segment) for segment in segments]


@each_with_id
def test_an_id_reaches_its_rule_as_it_was_sent(client, recorder, rpc):
    for path in paths_with(rpc, SEGMENTS):
        assert send(client, rpc, path=path).status_code == 200, path
    assert recorder.requests == [(rpc, {"id": value}) for value in SEGMENTS.values()]


@each_with_id
def test_an_id_with_an_escaped_slash_is_refused(client, recorder, rpc):
    for path in paths_with(rpc, ["a%2Fb", "a%2fb", "..%2fx", "%5C", "a%5cb"]):
        assert_refused_here(send(client, rpc, path=path), recorder)


@pytest.mark.parametrize("rpc", ["GetNumber", "GetOrder", "GetHold", "GetBulkOrder", "ReleaseNumber"])
def test_a_path_with_an_empty_or_one_more_segment_is_404(client, recorder, rpc):
    for path in paths_with(rpc, ["", ".", "..", "%2e%2e", "%2E", f"{ID}/x", f"{ID}/"]):
        assert_refused_here(send(client, rpc, path=path), recorder, status=404)


# ---------------------------------------------------------------- the parameters of a query


PARAMETERS = {
    "limit": 5,
    "cursor": "AZCwoAAAcACAAAAAAAAAAQ",
    "number_type": "local",
    "campaign_id": ID,
    "search": "é 🙂+1&limit=7#?=%41;x",
}


def test_the_parameters_of_a_list_arrive_as_they_were_sent(client, recorder):
    assert_forwarded(send(client, "ListNumbers", query_of(PARAMETERS)), recorder, "ListNumbers", PARAMETERS)


def test_httpx_encodes_parameters_as_the_edge_reads_them(client, recorder):
    """It writes a space as +, as forms and most other clients do."""
    assert_forwarded(client.get(LIST, params=PARAMETERS), recorder, "ListNumbers", PARAMETERS)


def test_an_order_is_found_by_an_idempotency_key_with_any_characters(client, recorder):
    key = "".join(map(chr, range(0x21, 0x7F)))
    query = query_of({"idempotency_key": key})
    assert_forwarded(send(client, "FindOrder", query), recorder, "FindOrder", {"idempotency_key": key})


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("search=a=b", {"search": "a=b"}),
        ("search=a+b%2B", {"search": "a b+"}),
        ("search=a%2525", {"search": "a%25"}),
        ("search=null", {"search": "null"}),
        ("limit=%35", {"limit": 5}),
        ("limit=0", {"limit": 0}),
        ("&limit=5&&", {"limit": 5}),
        # Whether an empty text is allowed is for the field's rule to say.
        ("number_type=", {"number_type": ""}),
        ("cursor=&search=", {"cursor": "", "search": ""}),
    ],
)
def test_a_well_formed_query_is_forwarded(client, recorder, query, fields):
    assert_forwarded(send(client, "ListNumbers", query), recorder, "ListNumbers", fields)


UINT32 = "must be an integer"


@pytest.mark.parametrize(
    ("query", "details"),
    [
        ("limit=5&limit=5", {"limit": "repeated parameter"}),
        ("limit=5&search=x&limit=6", {"limit": "repeated parameter"}),
        ("number_type=local&number_type=toll_free", {"number_type": "repeated parameter"}),
        ("limit", {"limit": "malformed value"}),
        ("search", {"search": "malformed value"}),
        ("search&limit=5", {"search": "malformed value"}),
        ("search=%", {"search": "malformed value"}),
        ("search=%4", {"search": "malformed value"}),
        ("search=a%zzb", {"search": "malformed value"}),
        ("search=%%41", {"search": "malformed value"}),
        ("search=%u0041", {"search": "malformed value"}),
        ("search=%00", {"search": "malformed value"}),
        ("search=a%00b", {"search": "malformed value"}),
        ("limit=", {"limit": "malformed value"}),
        ("limit=abc", {"limit": "malformed value"}),
        ("limit=0x5", {"limit": "malformed value"}),
        ("limit=05", {"limit": "malformed value"}),
        ("limit=+5", {"limit": "malformed value"}),
        ("limit=%2B5", {"limit": "malformed value"}),
        ("limit=5;", {"limit": "malformed value"}),
        ("limit=NaN", {"limit": "malformed value"}),
        ("limit=null", {"limit": UINT32}),
        ("limit=true", {"limit": UINT32}),
        ('limit=%225%22', {"limit": UINT32}),
        ("limit=-1", {"limit": f"{UINT32} of 0..4294967295"}),
        ("limit=1.5", {"limit": f"{UINT32} of 0..4294967295"}),
        ("limit=4294967296", {"limit": f"{UINT32} of 0..4294967295"}),
        ("limit=99999999999", {"limit": f"{UINT32} of 0..4294967295"}),
        ("limit=1e400", {"limit": f"{UINT32} of 0..4294967295"}),
        # The edge's JSON has these spellings, but a query has only digits.
        ("limit=1e2", None),
        ("limit=5.0", None),
        ("limit=%205", None),
        # names
        ("Limit=5", {"Limit": "unknown parameter"}),
        ("numberType=local", {"numberType": "unknown parameter"}),
        ("success=true", {"success": "unknown parameter"}),
        ("%6cimit=5", None),
        ("l%69mit=5", None),
        ("%=5", None),
        ("=", None),
        ("=5", None),
        ("limit%3D5", None),
        ("%26limit=5", None),
        ("?limit=5", None),
        ("x" * 65 + "=1", None),
    ],
)  # fmt: skip
def test_a_query_that_is_not_strict_is_400(client, recorder, query, details):
    assert_refused_here(send(client, "ListNumbers", query), recorder, details)


# ---------------------------------------------------------------- through the whole service


MALFORMED_IDS = [
    "x", ID[:-1], f"{ID}0", ID.replace("-", ""), f"{{{ID}}}", f"{ID}\n", f"{ID} ", f"{ID[:-1]}g", "%", "é",
]  # fmt: skip


@each_with_id
def test_a_malformed_id_in_the_path_is_400(call, customer, rpc):
    for malformed in MALFORMED_IDS:
        response = call.rpc(rpc, customer.key, id=malformed)
        error = response.body["error"]
        assert (response.status, error["code"]) == (400, "VALIDATION_FAILED"), malformed
        assert error["details"]["id"] == "must be a UUID"


def test_a_malformed_id_is_400_also_when_a_member_of_the_body_breaks_its_rule(call, customer):
    response = call.rpc("UpdateNumber", customer.key, id="x", campaign_id="y")
    details = {"id": "must be a UUID", "campaign_id": "must be a UUID"}
    assert (response.status, response.body["error"]["details"]) == (400, details)
    assert call.rpc("UpdateNumber", customer.key, id=ID, campaign_id="y").status == 422


def test_an_empty_id_is_400_over_grpc(grpc_direct_call, grpc_edge_call, customer):
    """Over REST its path is another one, which does not exist."""
    for call in (grpc_direct_call, grpc_edge_call):
        assert call.rpc("GetNumber", customer.key, id="").status == 400


@pytest.mark.parametrize("text", ["%ff", "%C0%80", "%ED%A0%80", "%F4%90%80%80", "%E2%82"])
def test_a_path_or_a_query_that_is_not_utf_8_is_400(rest, customer, text):
    for target in (f"{LIST}/{text}", f"{LIST}?search={text}", f"{LIST}/orders?idempotency_key={text}"):
        response = rest.send("GET", target, customer.key)
        assert (response.status, response.body["error"]["code"]) == (400, "INVALID_INPUT")


def test_a_nul_in_a_path_is_400(rest, customer):
    """Envoy itself refuses it, before any filter runs."""
    response = rest.send("GET", f"{LIST}/%00", customer.key)
    assert (response.status, response.body["error"]["code"]) == (400, "INVALID_INPUT")


BROKEN_RULES = {
    "limit": (["0", "101", "4294967295"], "must be 1..100"),
    "cursor": (["", "x", "a" * 21, "a" * 23, "AZCwoAAAcACAAAAAAAAAA=", "AZCwoAAAcACAAAAAAAAA%2B%2B"],
               "must be the next_cursor of a response"),
    "number_type": (["", "Local", "mobile", "local%20"], "must be local, toll_free or short_code"),
    "campaign_id": (["", "x", ID.replace("-", "")], "must be a UUID"),
    "search": (["", "x" * 256, "a%0Ab", "%7F", "%C2%85"], "must be 1..255 chars"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_a_parameter_that_breaks_its_rule_is_422(rest, customer, name):
    values, rule = BROKEN_RULES[name]
    for value in values:
        response = rest.send("GET", f"{LIST}?{name}={value}", customer.key)
        assert (response.status, response.body["error"].get("details")) == (422, {name: rule}), value


def test_a_key_that_cannot_be_is_422(rest, customer):
    for value in ("", "a+b", "%C3%A9", "x" * 256, "%7F"):
        response = rest.send("GET", f"{LIST}/orders?idempotency_key={value}", customer.key)
        rule = {"idempotency_key": "must be one of 1..255 visible ASCII characters"}
        assert (response.status, response.body["error"].get("details")) == (422, rule), value
    missing = rest.rpc("FindOrder", customer.key)
    assert (missing.status, missing.body["error"]["details"]) == (422, rule)


def test_bytes_that_are_no_request_are_400_over_grpc(service, customer):
    metadata = [("authorization", f"Bearer {customer.key}")]
    for target in (service.edge_target, *service.grpc_targets):
        with grpc.insecure_channel(target) as channel:
            for rpc in RPCS:
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(f"/{SERVICE.full_name}/{rpc}")(b"\xff", metadata=metadata, timeout=20)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
