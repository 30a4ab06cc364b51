"""Which bodies the edge accepts over REST: strict JSON of the documented shape, and no other."""

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.callers import ROUTE, TIMEOUT_SECONDS
from tests.support.rest import JSON, assert_refused

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
        # names that the response must not repeat
        ('{"<script>":"x"}', None),
        ('{"\\u0000":"x"}', None),
        ('{"":"x"}', None),
        (f'{{"{"x" * 65}":"x"}}', None),
    ],
)
def test_a_400_for_a_wrong_member_names_the_member_and_its_rule(edge, body, details):
    assert_refused(edge.post(ROUTE, content=body, headers=JSON), 400, details)


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


def is_strict_order(body):
    """Whether Python's parser finds JSON of the documented shape: no member is unknown, repeated or of a wrong type."""

    def members(pairs):
        if len(dict(pairs)) < len(pairs):
            raise NotStrict
        return dict(pairs)

    def constant(_):
        raise NotStrict

    try:
        order = json.loads(body.decode(), object_pairs_hook=members, parse_constant=constant)
        json.dumps(order, ensure_ascii=False).encode()  # fails for lone surrogates
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
    """Return a well-formed order with a few bytes replaced, removed or inserted."""
    body = draw(WRITTEN)
    for where, removed, piece in draw(EDITS):
        at = round(where * len(body))
        body = body[:at] + piece + body[at + removed :]
    return body


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated_orders())
def test_the_edge_accepts_exactly_what_a_strict_reader_accepts(service, plain_client, body):
    response = plain_client.post(ROUTE, content=body, headers=JSON)
    # The call has no key. So the server refuses with 401 what the edge accepts.
    assert response.status_code == (401 if is_strict_order(body) else 400), body


@pytest.fixture(scope="module")
def plain_client(service):
    with httpx.Client(base_url=service.rest_url, timeout=TIMEOUT_SECONDS) as client:
        yield client
