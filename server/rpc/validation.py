"""Checks a request against the contract's rules. All of them are written in the protos.

protovalidate checks the `buf.validate` rules. They cannot express that the host of a URL is public. So this module
checks the fields that have our own option `public_url`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from ordernumbers.v1 import options_pb2
from ordernumbers.v1.orders_pb2 import OrderNumbersRequest
from server.config import NUMBERS_PER_ORDER_MAX
from server.rpc.public_url import is_public

NOT_PUBLIC = "must be a public https:// URL"

_validator = protovalidate.Validator()

# The plain check. Each is narrower than the rule in the proto, never wider.
_E164 = re.compile(r"\+[1-9][0-9]{1,14}", re.ASCII)
_PLAIN_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,254}", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


def violations(request: Message) -> dict[str, str]:
    """Return every field at fault with the first rule it breaks: {"numbers[1]": "must be E.164"}.

    Raises UnsupportedField if the request's class has `public_url` on a field that this module cannot check.
    """
    if isinstance(request, OrderNumbersRequest) and is_plainly_valid(request):
        return {}
    return violations_by_protovalidate(request)


def violations_by_protovalidate(request: Message) -> dict[str, str]:
    """As `violations`, with every rule checked."""
    too_long = _too_long_lists(request)
    if too_long:  # a request has room for 30 000 items, which take a second to check
        request = _shortened(request, too_long)
    found = _broken_rules(request)
    for path, url in _public_urls(request):
        # An empty string counts as absent. A field that must not be empty has a rule of its own.
        if url and path not in found and not is_public(url):
            found[path] = NOT_PUBLIC
    return {path: rule for path, rule in found.items() if not _is_item(path, too_long)}


def is_plainly_valid(order: OrderNumbersRequest) -> bool:
    """Whether an order is of the common kind that certainly breaks no rule. If not, protovalidate decides.

    Alone in a loop protovalidate takes 11 µs and this 1. A test compares them: what this accepts, it accepts too.
    """
    numbers = order.numbers
    return (
        1 <= len(numbers) <= NUMBERS_PER_ORDER_MAX
        and (len(numbers) == 1 or len(set(numbers)) == len(numbers))
        and all(map(_E164.fullmatch, numbers))
        and not (order.HasField("inbound_url") or order.HasField("status_url"))
        and (not order.HasField("label") or _PLAIN_LABEL.fullmatch(order.label) is not None)
        and (not order.HasField("campaign_id") or _UUID.fullmatch(order.campaign_id) is not None)
    )


class UnsupportedField(TypeError):
    """The proto has the option `public_url` where it cannot be checked. The message names the field."""


# ---------------------------------------------------------------- the rules of buf.validate


def _broken_rules(request: Message) -> dict[str, str]:
    found: dict[str, str] = {}
    for violation in _validator.collect_violations(request):
        # Keep the first rule, because a response has one rule per field.
        found.setdefault(_path(violation), violation.proto.message)
    return found


def _path(violation: protovalidate.Violation) -> str:
    """Return where in the request a rule is broken, such as `numbers[1]`."""
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path


@cache
def _limited_lists(message: Descriptor) -> Sequence[tuple[str, int]]:
    """Return the lists of a message that have a `max_items` rule, each with that limit."""
    rules = {field.name: field.GetOptions().Extensions[validate_pb2.field] for field in message.fields}
    return [(name, rule.repeated.max_items) for name, rule in rules.items() if rule.repeated.HasField("max_items")]


def _too_long_lists(request: Message) -> dict[str, int]:
    lists = _limited_lists(request.DESCRIPTOR)
    return {name: items_max for name, items_max in lists if len(getattr(request, name)) > items_max}


def _shortened(request: Message, too_long: Mapping[str, int]) -> Message:
    """Return a copy with one item too many in each list, so that the list still breaks its rule."""
    copy = type(request)()
    copy.CopyFrom(request)
    for name, items_max in too_long.items():
        del getattr(copy, name)[items_max + 1 :]
    return copy


def _is_item(path: str, lists: Collection[str]) -> bool:
    name, bracket, _ = path.partition("[")
    return bool(bracket) and name in lists


# ---------------------------------------------------------------- the option public_url


def _public_urls(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every URL that must be public, in this message and its sub-messages, with its path."""
    for field in _fields_with_urls(message.DESCRIPTOR):
        for path, value in _values(message, field, prefix + field.name):
            if isinstance(value, Message):
                yield from _public_urls(value, f"{path}.")
            else:
                yield path, value


def _values(message: Message, field: FieldDescriptor, path: str) -> Iterator[tuple[str, Message | str]]:
    """Yield the values that a field has, with their paths. A field that is not set has none."""
    if field.is_repeated:
        yield from ((f"{path}[{i}]", value) for i, value in enumerate(getattr(message, field.name)))
    elif not field.has_presence or message.HasField(field.name):
        yield path, getattr(message, field.name)


@cache
def _fields_with_urls(message: Descriptor) -> Sequence[FieldDescriptor]:
    """Return the fields of a message that have the option, or whose sub-messages have such fields."""
    return [field for field in message.fields if _is_url(field) or _has_urls(field)]


def _is_url(field: FieldDescriptor) -> bool:
    """Whether the field has the option. Raises UnsupportedField if it is not a string."""
    is_url = field.GetOptions().Extensions[options_pb2.public_url]
    if is_url and field.type != FieldDescriptor.TYPE_STRING:
        raise UnsupportedField(f"{field.full_name}: the option public_url is only for fields of type string")
    return is_url


def _has_urls(field: FieldDescriptor) -> bool:
    """Whether a sub-message of the field has the option on one of its fields. Raises UnsupportedField for a map."""
    message = field.message_type
    if message is None or not any(_is_url(each) for found in _with_sub_messages(message) for each in found.fields):
        return False
    if message.GetOptions().map_entry:
        raise UnsupportedField(f"{field.full_name}: the option public_url is not supported inside a map")
    return True


def _with_sub_messages(message: Descriptor) -> Collection[Descriptor]:
    """Return a message class, and the classes of all messages that can be inside it."""
    found, waiting = {message}, [message]  # a message can contain itself, so each class is visited once
    while waiting:
        children = {field.message_type for field in waiting.pop().fields if field.message_type} - found
        found |= children
        waiting += children
    return found
