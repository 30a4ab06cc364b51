"""Reads the idempotency key of a call from its `idempotency-key` metadata (over REST, the `Idempotency-Key` header).

The source is an IETF draft, draft-ietf-httpapi-idempotency-key-header. There the value is a String in double quotes
(RFC 9651, section 3.3.3). We also accept the text without quotes, because many clients send it so.
"""

import re
from collections.abc import Sequence

HEADER = "idempotency-key"
RULE = "must be one of 1..255 visible ASCII characters"

# Without quotes. A value that starts with a quote must be a correct String.
_BARE = re.compile(r'(?!")[!-~]{1,255}', re.ASCII)
_QUOTED = re.compile(r'"((?:[!#-\[\]-~]|\\["\\]){1,255})"', re.ASCII)


def read(values: Sequence[str | bytes]) -> tuple[str | None, dict[str, str]]:
    """Return the key and the violations of its rule, for all values that the call has under the header's name.

    No value: no key and no violation. One well-formed value: the key, without quotes and escapes. Else: a violation.
    """
    if not values:
        return None, {}
    key = _parsed(values[0]) if len(values) == 1 else None
    return key, {} if key is not None else {HEADER: RULE}


def _parsed(value: str | bytes) -> str | None:
    if isinstance(value, bytes):  # gRPC gives bytes for names that end in -bin
        return None
    if quoted := _QUOTED.fullmatch(value):
        return re.sub(r"\\(.)", r"\1", quoted[1])
    return value if _BARE.fullmatch(value) else None
