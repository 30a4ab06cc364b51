"""Which values of the header `idempotency-key` are a key."""

import pytest

from server.rpc import idempotency_key

BROKEN = (None, {"idempotency-key": "must be one of 1..255 visible ASCII characters"})


def test_a_call_without_the_header_has_no_key_and_breaks_no_rule():
    assert idempotency_key.read(()) == (None, {})


@pytest.mark.parametrize("key", ["a", "a" * 255, "!~", 'a"b', "a\\b", "8e03978e-40d5-43dd-bc93-6894a57f9324"])
def test_a_bare_key_is_the_key(key):
    assert idempotency_key.read([key]) == (key, {})


@pytest.mark.parametrize(
    ("value", "key"),
    [('"a"', "a"), (f'"{"a" * 255}"', "a" * 255), (r'"a\"b\\c"', r'a"b\c'), ('"\'"', "'")],
)
def test_a_quoted_key_is_the_key_without_quotes_and_escapes(value, key):
    assert idempotency_key.read([value]) == (key, {})


@pytest.mark.parametrize(
    "value",
    ["", "a" * 256, "a b", " a", "a\n", "é", "\x7f", '"', '""', '"a', '"a"b', '"a b"', f'"{"a" * 256}"',
     r'"a\b"', b"a"],
    ids=ascii,
)  # fmt: skip
def test_any_other_value_breaks_the_rule(value):
    assert idempotency_key.read([value]) == BROKEN


def test_two_values_break_the_rule():
    assert idempotency_key.read(["a", "a"]) == BROKEN
