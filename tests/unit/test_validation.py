"""The rules of a request, and above all which hosts a URL may have: other systems will call them."""

import unicodedata

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from buf.validate import validate_pb2
from ordernumbers.v1 import options_pb2
from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from ordernumbers.v1.phone_number_service_pb2 import DESCRIPTOR
from server.config import NUMBERS_PER_ORDER_MAX
from server.rpc import validation

GOOD = "+14155550100"
NOT_PUBLIC = "must be a public https:// URL"


def violations(**fields):
    return validation.violations(OrderNumbersRequest(**{"numbers": [GOOD], **fields}))


def test_a_plain_order_breaks_no_rule():
    assert violations() == {}


@pytest.mark.parametrize("size", [1, 2, 100])
def test_one_to_a_hundred_numbers_may_be_ordered(size):
    assert violations(numbers=[f"+1415555{i:04}" for i in range(size)]) == {}


@pytest.mark.parametrize("numbers", [[], [f"+1415555{i:04}" for i in range(101)], ["bad"] * 10_000])
def test_no_numbers_or_more_than_a_hundred_are_one_violation(numbers):
    assert violations(numbers=numbers) == {"numbers": "must be 1..100 numbers"}


@pytest.mark.parametrize(
    "number",
    ["", "14155550100", "+0415555", "+1", "+1234567890123456", "+1415555010x", "+14155550100\n", " +14155550100",
     "+1 415 555 0100", "+1٤155550100", "tel:+14155550100", "+-4155550100"],
)  # fmt: skip
def test_a_number_must_be_e164(number):
    assert violations(numbers=[GOOD, number]) == {"numbers[1]": "must be E.164"}


@pytest.mark.parametrize("number", ["+12", "+123456789012345"])
def test_a_number_with_two_to_fifteen_digits_is_accepted(number):
    assert violations(numbers=[number]) == {}


def test_all_fields_at_fault_are_returned_at_once():
    assert violations(
        numbers=["x", GOOD, GOOD], inbound_url="http://example.com", status_url="", campaign_id="7", label="\t"
    ) == {
        "numbers": "must not repeat a number",
        "numbers[0]": "must be E.164",
        "inbound_url": NOT_PUBLIC,
        "status_url": NOT_PUBLIC,
        "campaign_id": "must be a UUID",
        "label": "must be 1..255 chars",
    }


@pytest.mark.parametrize("label", ["a", "é" * 255, "🙂" * 255, ".", '"\\/', "\uf8ff", "\U0010ffff"])
def test_a_label_of_1_to_255_characters_is_accepted(label):
    assert violations(label=label) == {}


@pytest.mark.parametrize("label", ["", "a" * 256, "a\x00", "a\nb", "\x7f", "\x85", "\x1b[31m"])
def test_a_label_of_another_length_or_with_control_characters_is_refused(label):
    assert violations(label=label) == {"label": "must be 1..255 chars"}


# Code points with Unicode's property Default_Ignorable_Code_Point, and letters and symbols that look blank.
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0\ufff0\ufff8\U00013441\U00013442\U0001d159"
TAGS = "".join(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0000, 0xE1000))))
BLANKS = "".join(c for c in map(chr, range(0x110000)) if unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cf"))


@pytest.mark.parametrize("blanks", [FILLERS, TAGS, BLANKS], ids=["fillers", "tags", "blanks"])
def test_a_label_without_a_visible_character_is_refused(blanks):
    assert {"\u00a0", "\u00ad", "\u061c", "\u200b", "\u202e", "\u2028", "\u2066", "\u3000", "\ufeff"} <= set(BLANKS)
    for label in (*blanks, blanks[-255:], f" {blanks[0]} "):
        assert violations(label=label) == {"label": "must be 1..255 chars"}, ascii(label)
    for label in (*(f"{blank}a" for blank in blanks), f"é{blanks[-254:]}"):
        assert violations(label=label) == {}, ascii(label)


@pytest.mark.parametrize(
    "label",
    ["e\u0301", "שלום\u200f", "می\u200cخواهم", "👩\u200d🚒", "❤\ufe0f", "कि", "\u202eabc\u202c", " a ", "1", "한국어"],
)
def test_a_label_may_have_invisible_characters_beside_visible_ones(label):
    assert violations(label=label) == {}


@pytest.mark.parametrize("campaign_id", ["", "1", "0" * 32, "g0000000-0000-0000-0000-000000000000",
                                         "{00000000-0000-0000-0000-000000000000}",
                                         "00000000-0000-0000-0000-000000000000\n"])  # fmt: skip
def test_a_campaign_id_must_be_a_uuid(campaign_id):
    assert violations(campaign_id=campaign_id) == {"campaign_id": "must be a UUID"}


@pytest.mark.parametrize(
    "campaign_id", ["01a20a47-68ed-75bd-a307-fdd58219efff", "01A20A47-68ED-75BD-A307-FDD58219EFFF"]
)
def test_a_campaign_id_in_either_case_is_accepted(campaign_id):
    assert violations(campaign_id=campaign_id) == {}


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/",
        "https://EXAMPLE.com:8443/a/b?c=d%20e&f=@",
        "https://example.com./hook",
        "https://example.net",
        "https://example.org",
        "https://a_b.xn--bcher-kva.example.com/@me",
        "https://xn--e1afmkfd.xn--p1ai/",
        "https://1.2.3.4.example.com/",
        # names of private networks that are not the last label
        "https://internal.example.com",
        "https://kubernetes.default.svc.example.com",
        "https://test.local.onion.arpa.example.com",
        "https://notlocal.mylocalhost",
        "https://8.8.8.8/hook",
        "https://8.8.8.8:443",
        "https://[2606:4700:4700::1111]/hook",
        "https://[2606:4700:4700::1111]:8443",
        "https://localhost.example.com",
        "https://example.com/" + "a" * (2048 - len("https://example.com/")),
    ],
)
def test_a_public_url_is_accepted(url):
    assert violations(inbound_url=url, status_url=url) == {}


PRIVATE_HOSTS = [
    # names of this machine
    "localhost", "LOCALHOST", "localhost.", "a.localhost", "foo.localhost.",
    # one label: such a name exists only inside a network
    "intranet", "metadata", "example", "com", "com.", "xn--p1ai", "kubernetes", "instance-data",
    # special-use names: RFC 6761, 6762, 7686, 8375, 9476, and all of .arpa
    "db.local", "DB.LOCAL", "db.local.", "a.b.c.local", "a.localhost.", "hooks.test", "hooks.example", "a.b.invalid",
    "expyuzz4wqqyqhjn.onion", "router.home.arpa", "HOME.ARPA", "home.arpa.", "1.0.0.10.in-addr.arpa", "8.e.f.ip6.arpa",
    "_dns.resolver.arpa", "default.service.arpa", "ipv4only.arpa", "e164.arpa", "wallet.alt", "eth0.a-b.alt.",
    # private use: ICANN, RFC 6762 appendix G
    "hooks.internal", "metadata.google.internal", "METADATA.google.INTERNAL.", "ip-10-0-0-1.eu-west-1.compute.internal",
    "host.docker.internal", "mx.corp", "nas.home", "printer.lan", "wiki.intranet", "vault.private", "smtp.mail",
    # names that software invents
    "kubernetes.default.svc", "kubernetes.default.svc.", "kubernetes.default", "kubernetes.default.svc.cluster.local",
    "orders.service.consul", "host.localdomain", "localhost.localdomain",
    # the same in Punycode, or with a character that only looks like a dot
    "a.xn--local-", "a.xn--localhost-", "a。local", "a．internal", "a.ｌｏｃａｌ", "a.%6cocal",
    "a.local..", ".internal",
    # loopback, in the spellings that attackers use
    "127.0.0.1", "127.1", "127.0.0.1.", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7F.1", "0177.0.0.1",
    "017700000001", "0", "0.0.0.0", "127.0.0.01", "00.0.0.0", "127.0.0.1%00", "127。0。0。1", "１２７.0.0.1",
    "%31%32%37.0.0.1", "0x",
    # private, link-local, shared, metadata, documentation, reserved, multicast, broadcast
    "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "2852039166", "0xa9fea9fe", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "240.0.0.1", "224.0.0.1", "255.255.255.255", "192.0.0.192",
    # IPv6, and IPv4 inside it
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:8.8.8.8]",
    "[::ffff:808:808]", "[::127.0.0.1]", "[::808:808]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::a9fe:a9fe]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]", "[fe80::1%25eth0]", "[fc00::1]",
    "[fd00:ec2::254]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[2001:2::1]",
    "[2606:4700:4700:0::1111]", "[2606:4700:4700::0001]",
    # not hosts
    "", ".", "a..b", "-a.example.com", "a-.example.com", "a b.com", "exa$mple.com", "x" * 64 + ".example.com",
    "a." * 127 + "abc",
    "[8.8.8.8]", "[v1.x]", "[", "8.8.8.8.8", "8.8.8", "1.2.3.256",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
@pytest.mark.parametrize("field", ["inbound_url", "status_url"])
def test_a_host_that_is_not_public_is_refused(field, host):
    assert violations(**{field: f"https://{host}/hook"}) == {field: NOT_PUBLIC}


@pytest.mark.parametrize(
    "url",
    ["", "https:", "https://", "https:///path", "http://example.com", "ftp://example.com", "//example.com",
     "example.com", "https:/example.com", "https:example.com", "javascript:alert(1)", " https://example.com",
     "https://example.com ",
     "https://user@example.com", "https://user:password@example.com", "https://@example.com", "https://:@example.com",
     "https://example.com#", "https://example.com/#fragment", "https://example.com:", "https://example.com:0",
     "https://example.com:65536", "https://example.com:-1", "https://example.com:8o", "https://example.com\\@10.0.0.1/",
     "https://example.com/a b", "https://example.com/\n", "https://exämple.com/", "https://example.com/é",
     "https://example.com/%zz", "https://example.com/" + "a" * 2048],
)  # fmt: skip
def test_a_url_that_is_not_absolute_https_or_has_a_user_or_a_fragment_is_refused(url):
    assert violations(inbound_url=url) == {"inbound_url": NOT_PUBLIC}


# ---------------------------------------------------------------- the option public_url


METHODS = [method for service in DESCRIPTOR.services_by_name.values() for method in service.methods]
REQUESTS = [GetMessageClass(method.input_type) for method in METHODS]
URLS = [
    (request, field.name)
    for request in REQUESTS
    for field in request.DESCRIPTOR.fields
    if field.GetOptions().Extensions[options_pb2.public_url]
]


@pytest.mark.parametrize("request_class", REQUESTS)
def test_every_request_of_the_contract_can_be_checked(request_class):
    validation.violations(request_class())


@pytest.mark.parametrize(("request_class", "field"), URLS)
def test_every_url_of_the_contract_must_be_https_and_public(request_class, field):
    for url in ("http://example.com", "https://localhost", "https://user@example.com", "https://example.com#fragment"):
        assert validation.violations(request_class(**{field: url}))[field] == NOT_PUBLIC


def test_the_limit_of_the_list_is_that_of_its_rule():
    rules = OrderNumbersRequest.DESCRIPTOR.fields_by_name["numbers"].GetOptions().Extensions[validate_pb2.field]
    assert rules.repeated.max_items == NUMBERS_PER_ORDER_MAX
    assert f"size(this) <= {NUMBERS_PER_ORDER_MAX}" in rules.cel[0].expression


STRING, INT64, MESSAGE = (getattr(FieldDescriptorProto, f"TYPE_{name}") for name in ("STRING", "INT64", "MESSAGE"))
OPTIONAL, REPEATED = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED


def new_file(package):
    imports = [validate_pb2.DESCRIPTOR.name, options_pb2.DESCRIPTOR.name]
    return FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3", dependency=imports)


def add_field(message, name, kind, label=OPTIONAL, *, is_url=False, type_name=None):
    field = message.field.add(name=name, number=len(message.field) + 1, type=kind, label=label, type_name=type_name)
    field.options.Extensions[options_pb2.public_url] = is_url
    return field


def class_of(file, message):
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message}"))


def test_a_url_in_any_message_and_list_is_checked():
    file = new_file("nested")
    hook, request = file.message_type.add(name="Hook"), file.message_type.add(name="Request")
    add_field(hook, "url", STRING, is_url=True)
    add_field(hook, "comment", STRING)
    add_field(hook, "fallback", MESSAGE, type_name=".nested.Hook")
    add_field(request, "urls", STRING, REPEATED, is_url=True)
    add_field(request, "hook", MESSAGE, type_name=".nested.Hook")
    add_field(request, "hooks", MESSAGE, REPEATED, type_name=".nested.Hook")
    request_class = class_of(file, "Request")
    bad, good = "https://localhost", "https://example.com"
    assert validation.violations(request_class()) == {}
    assert validation.violations(request_class(urls=[good], hook={"url": good, "comment": bad})) == {}
    nested = {"url": good, "fallback": {"url": bad}}
    assert validation.violations(request_class(urls=[good, bad], hook=nested, hooks=[{}, {"url": bad}, nested])) == {
        "urls[1]": NOT_PUBLIC,
        "hook.fallback.url": NOT_PUBLIC,
        "hooks[1].url": NOT_PUBLIC,
        "hooks[2].fallback.url": NOT_PUBLIC,
    }


def test_a_url_that_is_not_a_string_is_an_error_that_names_the_field():
    file = new_file("number")
    add_field(file.message_type.add(name="Request"), "url", INT64, is_url=True)
    with pytest.raises(validation.UnsupportedField, match=r"number\.Request\.url"):
        validation.violations(class_of(file, "Request")())


def add_map(message, name, package, kind, type_name=None):
    entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
    entry.options.map_entry = True
    add_field(entry, "key", STRING)
    add_field(entry, "value", kind, type_name=type_name)
    return add_field(message, name, MESSAGE, REPEATED, type_name=f".{package}.{message.name}.{entry.name}")


def test_a_map_of_urls_is_an_error_that_names_the_field():
    file = new_file("strings")
    field = add_map(file.message_type.add(name="Request"), "urls", "strings", STRING)
    field.options.Extensions[options_pb2.public_url] = True
    with pytest.raises(validation.UnsupportedField, match=r"strings\.Request\.urls"):
        validation.violations(class_of(file, "Request")())


def test_a_url_in_the_values_of_a_map_is_an_error_that_names_the_map():
    file = new_file("hooks")
    add_field(file.message_type.add(name="Hook"), "url", STRING, is_url=True)
    add_map(file.message_type.add(name="Request"), "hooks", "hooks", MESSAGE, ".hooks.Hook")
    with pytest.raises(validation.UnsupportedField, match=r"hooks\.Request\.hooks"):
        validation.violations(class_of(file, "Request")())


# ---------------------------------------------------------------- the plain check

DIGITS = st.text("0123456789", min_size=1, max_size=17)
NUMBERS = st.one_of(
    DIGITS.map("+{}".format),
    st.from_regex(r"\A\+[1-9][0-9]{1,14}\Z"),
    st.sampled_from([GOOD, GOOD + "\n", "+1٤155550100", ""]),
)
LABELS = st.one_of(st.text(), st.text("abc XYZ09._-\t\n\u200b\u3164", max_size=5), DIGITS.map(lambda some: some * 16))
UUIDS = st.uuids().map(str)
CAMPAIGNS = st.one_of(UUIDS, UUIDS.map(str.upper), UUIDS.map(lambda some: some.replace("-", "")), DIGITS)
URLS = st.sampled_from(["", "https://example.com/x", "http://localhost"])
ORDERS = st.builds(
    OrderNumbersRequest,
    numbers=st.lists(NUMBERS, max_size=4)
    | st.lists(st.sampled_from([GOOD, "+12", "+13"]), max_size=3)
    | st.integers(98, 103).map(lambda n: [f"+1415555{i:04}" for i in range(n)]),
    inbound_url=st.none() | URLS,
    status_url=st.none() | URLS,
    label=st.none() | LABELS,
    campaign_id=st.none() | CAMPAIGNS,
    validate_only=st.booleans(),
)


@given(ORDERS)
def test_what_the_plain_check_accepts_breaks_no_rule(order):
    if validation.is_plainly_valid(order):
        assert validation.violations_by_protovalidate(order) == {}


@pytest.mark.parametrize(
    "fields", [{}, {"label": "Support 1"}, {"campaign_id": "018f5a5e-7d5c-7b3e-9d5a-0123456789AB"}]
)
def test_the_plain_check_accepts_common_orders(fields):
    assert validation.is_plainly_valid(OrderNumbersRequest(numbers=[GOOD, GOOD + "1"], **fields))
    assert violations(**fields) == {}
