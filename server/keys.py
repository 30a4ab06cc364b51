"""API keys as text. A key is shown once, and only its SHA-256 digest is stored.

A key is `am_live_` + 6 characters of tag + 32 random characters + 6 characters of checksum, all in base 62. The tag is
a checksum of the organization's id. It is not secret and proves nothing. The edge uses it to send all calls of an
organization to the same worker. The checksum finds mistyped keys without a database query. It also lets scanners for
leaked secrets recognize a key with certainty.
"""

import hashlib
import re
import secrets
import string
import zlib
from uuid import UUID

PREFIX = "am_live_"
TAG_CHARS, RANDOM_CHARS, CHECKSUM_CHARS = 6, 32, 6
_DIGITS = string.digits + string.ascii_letters
_PATTERN = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{TAG_CHARS + RANDOM_CHARS + CHECKSUM_CHARS}}}", re.ASCII)


def new_key(organization_id: UUID) -> str:
    """Return a new key for an organization, with 190 random bits from the operating system."""
    tag = _base62(zlib.crc32(organization_id.bytes), TAG_CHARS)
    body = PREFIX + tag + "".join(secrets.choice(_DIGITS) for _ in range(RANDOM_CHARS))
    return body + _checksum(body)


def is_well_formed(key: str) -> bool:
    """Whether the text has the format of a key and a correct checksum."""
    return _PATTERN.fullmatch(key) is not None and _checksum(key[:-CHECKSUM_CHARS]) == key[-CHECKSUM_CHARS:]


def digest(key: str) -> bytes:
    """Return the SHA-256 digest of a key, which is what the database stores."""
    # A salt or a slow hash protects guessable passwords. A key with 190 random bits needs neither.
    return hashlib.sha256(key.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), CHECKSUM_CHARS)


def _base62(value: int, width: int) -> str:
    digits = ""
    for _ in range(width):
        value, digit = divmod(value, 62)
        digits = _DIGITS[digit] + digits
    return digits
