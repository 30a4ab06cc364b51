"""The rules of a request, and above all which hosts a URL may name: other systems will call them."""

import unicodedata

import pytest

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from server.errors import Code, Refusal
from server.rpc.validation import validate

GOOD = "+14155550100"
NOT_PUBLIC = "must be a public https:// URL"


def violations(**fields):
    request = OrderNumbersRequest(**{"numbers": [GOOD], **fields})
    try:
        validate(request)
    except Refusal as refusal:
        return refusal.details
    return {}


def test_violations_are_one_refusal():
    with pytest.raises(Refusal) as refused:
        validate(OrderNumbersRequest())
    assert refused.value.code is Code.VALIDATION_FAILED


def test_a_plain_order_breaks_no_rule():
    assert violations() == {}


@pytest.mark.parametrize("size", [1, 2, 100])
def test_one_to_a_hundred_numbers_may_be_ordered(size):
    assert violations(numbers=[f"+1415555{i:04}" for i in range(size)]) == {}


@pytest.mark.parametrize("numbers", [[], [f"+1415555{i:04}" for i in range(101)], ["bad"] * 10_000])
def test_other_counts_are_refused_in_one_sentence(numbers):
    assert violations(numbers=numbers) == {"numbers": "must be 1..100 numbers"}


@pytest.mark.parametrize(
    "number",
    ["", "14155550100", "+0415555", "+1", "+1234567890123456", "+1415555010x", "+14155550100\n", " +14155550100",
     "+1 415 555 0100", "+1٤155550100", "tel:+14155550100", "+-4155550100"],
)  # fmt: skip
def test_a_number_must_be_e164(number):
    assert violations(numbers=[GOOD, number]) == {"numbers[1]": "must be E.164"}


@pytest.mark.parametrize("number", ["+12", "+123456789012345"])
def test_e164_has_two_to_fifteen_digits(number):
    assert violations(numbers=[number]) == {}


def test_all_violations_are_told_at_once():
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
def test_a_label_has_1_to_255_characters(label):
    assert violations(label=label) == {}


@pytest.mark.parametrize("label", ["", "a" * 256, "a\x00", "a\nb", "\x7f", "\x85", "\x1b[31m"])
def test_a_label_has_no_more_and_no_control_characters(label):
    assert violations(label=label) == {"label": "must be 1..255 chars"}


# Unicode's Default_Ignorable_Code_Point, and letters and symbols that are blank.
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0\ufff0\ufff8\U00013441\U00013442\U0001d159"
TAGS = "".join(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0000, 0xE1000))))
BLANKS = "".join(c for c in map(chr, range(0x110000)) if unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cf"))


@pytest.mark.parametrize("blanks", [FILLERS, TAGS, BLANKS], ids=["fillers", "tags", "blanks"])
def test_a_label_with_nothing_to_see_is_refused(blanks):
    assert {"\u00a0", "\u00ad", "\u061c", "\u200b", "\u202e", "\u2028", "\u2066", "\u3000", "\ufeff"} <= set(BLANKS)
    for label in (*blanks, blanks[-255:], f" {blanks[0]} "):
        assert violations(label=label) == {"label": "must be 1..255 chars"}, ascii(label)
    for label in (*(f"{blank}a" for blank in blanks), f"é{blanks[-254:]}"):
        assert violations(label=label) == {}, ascii(label)


@pytest.mark.parametrize(
    "label",
    ["e\u0301", "שלום\u200f", "می\u200cخواهم", "👩\u200d🚒", "❤\ufe0f", "कि", "\u202eabc\u202c", " a ", "1", "한국어"],
)
def test_a_label_in_any_script_may_hold_what_cannot_be_seen_alone(label):
    assert violations(label=label) == {}


@pytest.mark.parametrize("campaign_id", ["", "1", "0" * 32, "g0000000-0000-0000-0000-000000000000",
                                         "{00000000-0000-0000-0000-000000000000}",
                                         "00000000-0000-0000-0000-000000000000\n"])  # fmt: skip
def test_a_campaign_id_must_be_a_uuid(campaign_id):
    assert violations(campaign_id=campaign_id) == {"campaign_id": "must be a UUID"}


@pytest.mark.parametrize(
    "campaign_id", ["01a20a47-68ed-75bd-a307-fdd58219efff", "01A20A47-68ED-75BD-A307-FDD58219EFFF"]
)
def test_a_uuid_may_be_written_in_either_case(campaign_id):
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
    # names that mean this machine
    "localhost", "LOCALHOST", "localhost.", "a.localhost", "foo.localhost.",
    # names that mean nothing outside of some network: one label
    "intranet", "metadata", "example", "com", "com.", "xn--p1ai", "kubernetes", "instance-data",
    # special-use names: RFC 6761, 6762, 7686, 8375, 9476, and all of .arpa
    "db.local", "DB.LOCAL", "db.local.", "a.b.c.local", "a.localhost.", "hooks.test", "hooks.example", "a.b.invalid",
    "expyuzz4wqqyqhjn.onion", "router.home.arpa", "HOME.ARPA", "home.arpa.", "1.0.0.10.in-addr.arpa", "8.e.f.ip6.arpa",
    "_dns.resolver.arpa", "default.service.arpa", "ipv4only.arpa", "e164.arpa", "wallet.alt", "eth0.a-b.alt.",
    # private use: ICANN, RFC 6762 appendix G
    "hooks.internal", "metadata.google.internal", "METADATA.google.INTERNAL.", "ip-10-0-0-1.eu-west-1.compute.internal",
    "host.docker.internal", "mx.corp", "nas.home", "printer.lan", "wiki.intranet", "vault.private", "smtp.mail",
    # what software makes up
    "kubernetes.default.svc", "kubernetes.default.svc.", "kubernetes.default", "kubernetes.default.svc.cluster.local",
    "orders.service.consul", "host.localdomain", "localhost.localdomain",
    # the same in Punycode, or with a dot that is none
    "a.xn--local-", "a.xn--localhost-", "a。local", "a．internal", "a.ｌｏｃａｌ", "a.%6cocal",
    "a.local..", ".internal",
    # loopback, in all the spellings that attackers use
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
def test_a_url_must_be_absolute_https_without_user_and_fragment(url):
    assert violations(inbound_url=url) == {"inbound_url": NOT_PUBLIC}
