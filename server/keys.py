"""API keys as text: made once, shown once, known to us only by their SHA-256 digest.

`am_live_` + 6 characters of the organization + 32 random ones + 6 of checksum, all base 62. The organization's tag is
not secret and proves nothing: the edge sends an organization's calls to the same worker by it. The checksum tells a
mistyped key from an unknown one without asking the database, and lets scanners of leaked secrets be sure.
"""

import hashlib
import re
import secrets
import string
import zlib
from uuid import UUID

SCOPES = ("numbers:read", "numbers:write")
"""What a key may be allowed to do; each method of the API declares the one it needs."""
PREFIX = "am_live_"
TAG_CHARS, RANDOM_CHARS, CHECKSUM_CHARS = 6, 32, 6
_DIGITS = string.digits + string.ascii_letters
_FORM = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{TAG_CHARS + RANDOM_CHARS + CHECKSUM_CHARS}}}", re.ASCII)


def new_key(organization_id: UUID) -> str:
    """A new key for an organization: 190 bits from the system's random source."""
    tag = _base62(zlib.crc32(organization_id.bytes), TAG_CHARS)
    body = PREFIX + tag + "".join(secrets.choice(_DIGITS) for _ in range(RANDOM_CHARS))
    return body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """Whether this could be a key at all: its form and its checksum."""
    return _FORM.fullmatch(key) is not None and _checksum(key[:-CHECKSUM_CHARS]) == key[-CHECKSUM_CHARS:]


def digest(key: str) -> bytes:
    """What is stored of a key. It is random enough that no salt or slow hash adds anything."""
    return hashlib.sha256(key.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECKSUM_CHARS)


def _base62(value: int, width: int) -> str:
    digits = ""
    for _ in range(width):
        value, digit = divmod(value, 62)
        digits = _DIGITS[digit] + digits
    return digits
