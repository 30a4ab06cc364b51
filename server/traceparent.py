"""The `traceparent` of a call, as the standard of the W3C has it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceParent(NamedTuple):
    """The place of a call in a trace: the ids of the trace, and of the span that made the call."""

    trace_id: str
    span_id: str
    is_sampled: bool


def read_traceparent(values: Sequence[str | bytes]) -> TraceParent | None:
    """What the values of `traceparent` say. None if they are not one value of the standard's form."""
    if len(values) != 1 or not isinstance(values[0], str):
        return None
    found = _TRACEPARENT.fullmatch(values[0])
    if not found or (found[1] == "00" and found[5]):  # only later versions may have more fields
        return None
    return TraceParent(found[2], found[3], bool(int(found[4], 16) & 1))
