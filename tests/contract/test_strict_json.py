"""Which bodies the edge accepts over REST: strict JSON of the documented shape, and no other."""

import json

import httpx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.callers import ROUTE, RPCS, SERVICE, TIMEOUT_SECONDS, route_of
from tests.support.rest import JSON, assert_refused

ID = "0190b0a0-0000-7000-8000-000000000001"
WITH_BODY = [rpc for rpc in RPCS if route_of(rpc).takes_body]

pytestmark = pytest.mark.usefixtures("no_script_error")

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
    # words that are not JSON
    '{"label":Null}', '{"label":NULL}', '{"label":nul}', '{"label":nullx}', '{"label":undefined}', '{"label":NaN}',
    '{"label":Infinity}', '{"label":None}', '{"label":+1}', '{"label":.5}',
]  # fmt: skip
MALFORMED_BYTES = [
    b'{"label":"\xff"}', b'{"label":"\xc0\x80"}', b'{"label":"\xed\xa0\x80"}', b'{"label":"\xf4\x90\x80\x80"}',
    b'{"label":"\xe2\x82"}', b'{"\xff":"x"}', '{"label":"x"}'.encode("utf-16"), '{"label":"x"}'.encode("utf-16-le"),
    '{"label":"x"}'.encode("utf-32"), b"\x1f\x8b\x08\x00", b"\x00\x00\x00\x00\x02\x0a\x00",
]  # fmt: skip


@pytest.mark.parametrize("body", [*(text.encode() for text in MALFORMED), *MALFORMED_BYTES], ids=repr)
def test_a_body_that_is_not_strict_json_is_400(edge, body):
    assert_refused(edge.post(ROUTE, content=body, headers=JSON), 400)


STRING, LIST, BOOLEAN = "must be a string", "must be a list", "must be a boolean"
INTEGER = "must be an integer"
UINT32 = f"{INTEGER} of 0..4294967295"


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
        ('{"validate_only":"true"}', {"validate_only": BOOLEAN}),
        ('{"validate_only":1}', {"validate_only": BOOLEAN}),
        ('{"validate_only":[true]}', {"validate_only": BOOLEAN}),
        ('{"validate_only":True}', None),
        ('{"label":"x","label":"x"}', {"label": "repeated member"}),
        ('{"label":null,"label":"x"}', {"label": "repeated member"}),
        ('{"numbers":[],"numbers":[]}', {"numbers": "repeated member"}),
        ('{"label":"x","\\u006cabel":"x"}', {"label": "repeated member"}),
        # names that the response must not repeat
        ('{"<script>":"x"}', None),
        ('{"\\u0000":"x"}', None),
        ('{"":"x"}', None),
        (f'{{"{"x" * 65}":"x"}}', None),
    ],
)
def test_a_400_for_a_wrong_member_names_the_member_and_its_rule(edge, body, details):
    assert_refused(edge.post(ROUTE, content=body, headers=JSON), 400, details)


@pytest.mark.parametrize(
    ("number", "rule"),
    [
        ('"5"', INTEGER), ("true", INTEGER), ("[5]", INTEGER), ("{}", INTEGER), ('"NaN"', INTEGER),
        ("-1", UINT32), ("1.5", UINT32), ("0.1e-1", UINT32), ("4294967296", UINT32), ("1e400", UINT32),
        ("-1e400", UINT32), ("9" * 1000, UINT32), ("1e10", UINT32),
        # no JSON
        ("01", None), ("+1", None), ("1.", None), (".5", None), ("1e", None), ("0x5", None), ("NaN", None),
        ("Infinity", None), ("1_0", None), ("1,0", None), ("--1", None), ("1 0", None), ("5u", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("rpc", "name"), [("SearchNumbers", "quantity"), ("HoldNumbers", "minutes")])
def test_a_number_that_is_no_integer_is_400(edge, rpc, name, number, rule):
    response = edge.post(route_of(rpc).template, content=f'{{"{name}":{number}}}', headers=JSON)
    assert_refused(response, 400, {name: rule} if rule else None)


@pytest.mark.parametrize("number", ["2", "2.0", "2.000e0", "0.2e1", "20e-1", "2E+0", "null"])
def test_every_spelling_of_an_integer_is_read(rest, customer, number):
    customer.numbers(2)
    response = rest.send("POST", "/v1/phone-numbers/search", customer.key, f'{{"quantity":{number}}}'.encode())
    assert response.status == 200
    assert len(response.body["data"]) == 2 or number == "null"


@pytest.mark.parametrize("number", ["0", "-0", "-0.0", "0e0", "1e-400", "101", "1e3", "4294967295"])
def test_an_integer_out_of_range_is_422(rest, customer, number):
    for rpc in ("SearchNumbers", "BulkOrderNumbers"):
        response = rest.send("POST", route_of(rpc).template, customer.key, f'{{"quantity":{number}}}'.encode())
        assert (response.status, response.body["error"]["details"]) == (422, {"quantity": "must be 1..100"})


@pytest.mark.parametrize("rpc", WITH_BODY)
def test_null_members_count_as_absent_on_each_route(rest, customer, rpc):
    path_fields = dict.fromkeys(route_of(rpc).path_fields, ID)
    absent = rest.rpc(rpc, customer.key, **path_fields)
    null = rest.rpc(rpc, customer.key, **path_fields, **dict.fromkeys(members_of(rpc)))
    assert null.status == absent.status
    assert null.body.get("error", {}).get("details") == absent.body.get("error", {}).get("details")


def test_a_null_member_counts_as_absent_and_a_name_may_have_escapes(rest, customer):
    numbers = customer.numbers(1)
    body = json.dumps({"numbers": numbers, "label": None, "inbound_url": None, "campaign_id": None})
    response = rest.post(customer.key, body.replace("numbers", "\\u006eumber\\u0073", 1).encode())
    assert response.status == 200
    assert "label" not in response.body["data"][0]


def test_all_kinds_of_escapes_and_blanks_are_read(rest, customer):
    (number,) = customer.numbers(1)
    label = 'é東🙂/\\" é東🙂'
    body = ' \r\n\t{ "label"\t:\r"é東🙂\\/\\\\\\"\\u0020\\u00e9\\u6771\\ud83d\\uDE42" ,\n"numbers" : [ "NUMBER" ] } \n'
    response = rest.post(customer.key, body.replace("NUMBER", number.replace("+", "\\u002B")).encode())
    assert (response.status, response.body["data"][0]["label"]) == (200, label)
    assert customer.label_of(number) == label


class NotStrict(Exception):
    pass


def is_strict(body, fields):
    """Whether Python's parser finds JSON of the documented shape: no member is unknown, repeated or of a wrong type."""

    def members(pairs):
        if len(dict(pairs)) < len(pairs):
            raise NotStrict
        return dict(pairs)

    def constant(_):
        raise NotStrict

    try:
        request = json.loads(body.decode(), object_pairs_hook=members, parse_constant=constant)
        json.dumps(request, ensure_ascii=False).encode()  # fails for lone surrogates
    except (NotStrict, ValueError, RecursionError):
        return False
    if not isinstance(request, dict) or not request.keys() <= fields.keys() or body.startswith(b"\xef\xbb\xbf"):
        return False
    return all(value is None or is_of_type(value, fields[name]) for name, value in request.items())


def is_of_type(value, field):
    if field.is_repeated:
        return isinstance(value, list) and all(is_scalar(each, field) for each in value)
    return is_scalar(value, field)


def is_scalar(value, field):
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return isinstance(value, str)
        case FieldDescriptor.TYPE_BOOL:
            return isinstance(value, bool)
        case FieldDescriptor.TYPE_UINT32:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return is_number and 0 <= value < 2**32 and value % 1 == 0


PIECES = [
    *'{}[]:,"\\ \n\t\0\x7f\x1f0123456789eE+-.', "null", "true", "NaN", '"numbers"', '"label"', '"x"', '"+1"', "\\u00e9",
    "\\ud83d\\ude42", "\\ud800", "\\/", "é", "🙂", "\ufeff", '"numbers":', '"label":', ",,", "[[", "{{", "//", "'",
]  # fmt: skip
TYPED = {
    FieldDescriptor.TYPE_STRING: st.text(max_size=8),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1) | st.integers(0, 2**32 - 1).map(float),
}
VALUES = st.one_of(
    *TYPED.values(), st.none(), st.integers(), st.floats(), st.lists(st.text(max_size=5) | st.none(), max_size=3)
)


def members_of(rpc):
    """The fields of the JSON body, by name."""
    return route_of(rpc).beside_path(SERVICE.methods_by_name[rpc].input_type.fields_by_name)


def typed_values(field):
    value = TYPED[field.type]
    return st.none() | (st.lists(value, max_size=3) if field.is_repeated else value)


def requests_of(rpc):
    """Objects with any of the members: of the right types, or with any values and perhaps an unknown member."""
    typed = {name: typed_values(field) for name, field in members_of(rpc).items()}
    any_values = dict.fromkeys([*typed, "label2"], VALUES)
    return st.fixed_dictionaries({}, optional=typed) | st.fixed_dictionaries({}, optional=any_values)


def written(request, ascii_only, indent):
    return json.dumps(request, ensure_ascii=ascii_only, indent=indent).encode(errors="surrogatepass")


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 3), st.sampled_from([b"", b"\xff", *(p.encode() for p in PIECES)])),
    max_size=3,
)


@st.composite
def mutated_requests(draw):
    """Return an RPC, and a well-formed request for it with a few bytes replaced, removed or inserted."""
    rpc = draw(st.sampled_from(WITH_BODY))
    body = written(draw(requests_of(rpc)), draw(st.booleans()), draw(st.sampled_from([None, 1])))
    for where, removed, piece in draw(EDITS):
        at = round(where * len(body))
        body = body[:at] + piece + body[at + removed :]
    return rpc, body


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated_requests())
def test_the_edge_accepts_exactly_what_a_strict_reader_accepts(service, plain_client, mutated):
    rpc, body = mutated
    route = route_of(rpc)
    response = plain_client.request(route.verb, route.path({"id": ID}), content=body, headers=JSON)
    # The call has no key. So the server refuses with 401 what the edge accepts.
    assert response.status_code == (401 if is_strict(body, members_of(rpc)) else 400), body


@pytest.fixture(scope="module")
def plain_client(service):
    with httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client:
        yield client
