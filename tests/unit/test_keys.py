"""API keys as text, and reading one from a call's metadata."""

from uuid import UUID

import pytest

from server import keys
from server.errors import Code, Refusal
from server.rpc.auth import bearer_key

ORGANIZATION = UUID(int=7)
KEY = "am_live_26qE4eSTn0IXQMPRz2fVWuAm4adRDfvm37hnsJ2BnbYg"  # of ORGANIZATION


def test_keys_of_one_organization_share_only_its_tag():
    other = keys.new_key(ORGANIZATION)
    tagged = len(keys.PREFIX) + keys.TAG_CHARS
    assert KEY[:tagged] == other[:tagged]
    assert KEY[tagged:] != other[tagged:]
    assert keys.is_well_formed(KEY)
    assert keys.is_well_formed(other)


@pytest.mark.parametrize("at", range(len(KEY)))
def test_a_mistyped_key_is_found_by_its_checksum(at):
    assert not keys.is_well_formed(KEY[:at] + ("x" if KEY[at] != "x" else "y") + KEY[at + 1 :])


@pytest.mark.parametrize(
    "wrong", ["", "am_live_", KEY[:-1], KEY + "0", KEY.upper(), KEY.replace("live", "test"), KEY + "\n"]
)
def test_other_texts_are_not_well_formed(wrong):
    assert not keys.is_well_formed(wrong)


def test_the_digest_is_a_sha256_digest():
    assert len(keys.digest(KEY)) == 32
    assert keys.digest(KEY) == keys.digest(str(KEY))


@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY}"])
def test_the_scheme_may_be_in_any_case(value):
    assert bearer_key([value]) == KEY


@pytest.mark.parametrize(
    "authorization",
    [
        [],
        [KEY],
        [f"Basic {KEY}"],
        [f"Bearer{KEY}"],
        [f"Bearer {KEY} "],
        [f" Bearer {KEY}"],
        [f"Bearer {KEY},Bearer {KEY}"],
        [f"Bearer {KEY}", f"Bearer {KEY}"],
        [f"Bearer {KEY}".encode()],
        ["Bearer "],
        ["Bearer am_live_" + "0" * 44],
    ],
)
def test_a_malformed_or_repeated_key_is_refused(authorization):
    with pytest.raises(Refusal) as refused:
        bearer_key(authorization)
    assert refused.value.code is Code.UNAUTHORIZED
