"""One call, before it is sent, and its result as the classes of `models`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from functools import cache
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import quote
from uuid import uuid4

T = TypeVar("T")

HEADER_VALUE = re.compile(r"([!-~]+([ \t]+[!-~]+)*)?")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call, and the class of what it returns. Raises ValueError for an idempotency key that no header can have."""

    method: str
    path: str
    result: type[T]
    query: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None
    is_write: bool = False
    idempotency_key: str | None = None
    """A write without one gets a new one here. All its attempts have this one."""
    is_whole: bool = False
    """Whether the result is the whole response, and not only its `data`."""

    may_be_carried_out: bool = field(default=False, init=False)
    """Whether an earlier call may have carried it out: the caller has given the idempotency key."""

    def __post_init__(self) -> None:
        if self.is_write and self.idempotency_key is None:
            object.__setattr__(self, "idempotency_key", str(uuid4()))
        elif self.idempotency_key is not None:
            if not HEADER_VALUE.fullmatch(self.idempotency_key):
                raise ValueError("idempotency_key must be visible ASCII characters")
            object.__setattr__(self, "may_be_carried_out", True)

    def result_of(self, response: Any) -> T:
        """Return the result in the JSON of a response. Raises KeyError, TypeError or ValueError if it is not there."""
        if response["success"] is not True:
            raise ValueError("not a success")
        return decode(self.result, response if self.is_whole else response["data"])


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None. None means absent."""
    return {name: value for name, value in values.items() if value is not None}


def path_of(route: str, **ids: str) -> str:
    """Return the path of a route with these ids. Raises ValueError for one that would lead to another path."""
    for name, value in ids.items():
        if not value.strip("."):
            raise ValueError(f"{name} must be a UUID")
    return route.format(**{name: quote(value, safe="") for name, value in ids.items()})


def decode(kind: type[T], value: Any) -> T:
    """Return a JSON value as this type. Members that it does not know are left out: a later version may add some."""
    found: Any = value
    if get_origin(kind) is UnionType:  # the other one of the two is None
        found = None if value is None else decode(get_args(kind)[0], value)
    elif get_origin(kind) is list:
        if not isinstance(value, list):
            raise TypeError("not a list")
        found = [decode(get_args(kind)[0], item) for item in value]
    elif is_dataclass(kind):
        found = kind(**{name: decode(type_, value[name]) for name, type_ in _members(kind).items() if name in value})
    elif kind is datetime:
        found = datetime.fromisoformat(value)
    return found  # type: ignore[no-any-return]


@cache
def _members(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}
