"""Searches for numbers that every organization can order."""

import random
from typing import NamedTuple

from server.rules.values import Criteria, Id
from server.store.statements import BoundStatement, load
from server.store.tables import NUMBER_TYPES

SEARCH = load("search", "search")
SEARCH_DIGITS = load("search", "search_digits")
STATEMENTS = (SEARCH, SEARCH_DIGITS)

INDEXED_DIGITS_MIN = 4
INDEXED_DIGITS_MIN_IN_AREA = 5
"""A pattern of fewer digits is in so many numbers that a search which tries them in order soon finds enough.

Milliseconds of CPU, with 10 million numbers of which a half is sold, and 50,000 of them per area code. 4 digits: 21 by
the index, 12 in order within an area code. 5 digits within an area code: 6 by the index.
"""
NUMBER_CHARS_MAX = 16


class Search(NamedTuple):
    """A search for an organization's key."""

    api_key_id: Id
    criteria: Criteria
    rows: int


def prefix_of(criteria: Criteria) -> str:
    """What the numbers begin with."""
    return f"+1{criteria.area_code}" if criteria.area_code else "+"


def search(wanted: Search) -> BoundStatement:
    """The statement of a search. Its first column is the scopes of the key, the others are of the numbers."""
    criteria = wanted.criteria
    parameters = {
        "api_key_id": wanted.api_key_id,
        "number_types": _allowed(criteria.number_type, NUMBER_TYPES),
        "sms_enabled": _allowed(criteria.sms_enabled, (True, False)),
        "mms_enabled": _allowed(criteria.mms_enabled, (True, False)),
        "random_digits": _random("0123456789"),
        "prefix": prefix_of(criteria),
        "rows": str(wanted.rows),
    }
    pattern = criteria.pattern or ""
    if len(pattern) >= (INDEXED_DIGITS_MIN_IN_AREA if criteria.area_code else INDEXED_DIGITS_MIN):
        return SEARCH_DIGITS(**parameters, has_pattern=f"%{pattern}%")
    return SEARCH(**parameters, pattern=pattern, random_sides=_random("01"))


def _random(digits: str) -> str:
    """A random digit for each position of a number."""
    return "".join(random.choices(digits, k=NUMBER_CHARS_MAX))  # noqa: S311


def _allowed(value: str | bool | None, all_values: tuple[str | bool, ...]) -> str:
    """PostgreSQL's array of the values that the criterion allows, the most common ones first."""
    return "{" + ",".join(str(each).lower() for each in ((value,) if value is not None else all_values)) + "}"
