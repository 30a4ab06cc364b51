"""Messages as JSON Schema 2020-12: what the edge accepts of a request, and what it prints of a response.

The rules of the fields become keywords. A rule or a type without keywords here is refused by name.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from protos.image import Field, Image, Message

Schema = dict[str, Any]

SCALARS: dict[int, Schema] = {
    FieldDescriptorProto.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptorProto.TYPE_STRING: {"type": "string"},
    FieldDescriptorProto.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
}
WELL_KNOWN: dict[str, Schema] = {
    ".google.protobuf.Struct": {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Value": {"type": ["string", "null"]},
}
"""Of the two types that may have anything, what our messages put into them."""

FIELD_RULES, MESSAGE_RULES = "[buf.validate.field]", "[buf.validate.message]"


class Undocumented(ValueError):
    """A rule or a type has no JSON Schema here. The message names the field and the reason."""


# ---------------------------------------------------------------- rules


def _between(kind: str, low: str, high: str) -> Schema:
    prefix = {"string": "Length", "array": "Items"}[kind]
    return {f"min{prefix}": int(low), f"max{prefix}": int(high)}


FORMATS = {"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$": {"format": "uuid"}}
# Wider than the rule. Its classes of Unicode characters are not in the regular expressions that all languages have.
_VISIBLE = {"pattern": r"\S"}
_NO_CONTROL = {"pattern": r"^[^\u0000-\u001F\u007F-\u009F]*$"}
_URL = {"format": "uri", "pattern": "^https://[^/?#@]*([/?][^#]*)?$"}

_CEL: Sequence[tuple[str, Callable[[str, re.Match[str]], Schema]]] = (
    (r"this\.matches\('(\^[^'\\]+\$)'\)", lambda _, m: {"pattern": m[1]} | FORMATS.get(m[1], {})),
    (r"this\.matches\(r'\[\^\\p{Z}\\p{Cc}\\p{Cf}\\p{M}[^']*\]'\)", lambda *_: _VISIBLE),
    (r"this in \[('\w+'(?:, '\w+')*)\]", lambda _, m: {"enum": re.findall(r"\w+", m[1])}),
    (r"this == '(\w+)'", lambda _, m: {"enum": [m[1]]}),
    (r"this >= (\d+)u && this <= (\d+)u", lambda _, m: {"minimum": int(m[1]), "maximum": int(m[2])}),
    (r"size\(this\) >= (\d+) && size\(this\) <= (\d+)", lambda kind, m: _between(kind, m[1], m[2])),
    (
        r"size\(this\) >= (\d+) && size\(this\) <= (\d+) && !this\.matches\('\\\\p{Cc}'\)",
        lambda kind, m: _between(kind, m[1], m[2]) | _NO_CONTROL,
    ),
    (r"size\(this\) > \d+ \|\| this\.unique\(\)", lambda *_: {"uniqueItems": True}),
    (
        r"size\(this\) <= (\d+) && this\.startsWith\('https://'\) && !this\.matches\('#\|\^https://\[\^/\?\]\*@'\)"
        r" && this\.isUri\(\)",
        lambda _, m: {"maxLength": int(m[1])} | _URL,
    ),
)
"""Each form of a CEL expression, with the keywords for it."""
_OR_EMPTY = "this == '' || "


def _keywords(name: str, kind: str, rules: Mapping[str, Any]) -> Schema:
    """Return the keywords for the rules of a value. `kind` is its type in JSON."""
    expressions = [rule["expression"] for rule in rules.get("cel", ())]
    found = [_list_keywords(name, rules.get("repeated", {}))]
    found += [_cel_keywords(name, kind, expression.removeprefix(_OR_EMPTY)) for expression in expressions]
    _refuse_unknown(name, rules, ("cel", "repeated"))
    may_be_empty = {expression.startswith(_OR_EMPTY) for expression in expressions}
    if len(may_be_empty) == 2:
        raise Undocumented(f"{name}: either all its rules accept an empty text, or none")
    return {"anyOf": [{"maxLength": 0}, _joined(found)]} if True in may_be_empty else _joined(found)


def _list_keywords(name: str, rules: Mapping[str, Any]) -> Schema:
    _refuse_unknown(name, rules, ("max_items", "items"))
    return {"maxItems": int(rules["max_items"])} if "max_items" in rules else {}


def _refuse_unknown(name: str, rules: Iterable[str], known: Collection[str]) -> None:
    for rule in rules:
        if rule not in known:
            raise Undocumented(f"{name}: there is no JSON Schema for the rule {rule}")


def _cel_keywords(name: str, kind: str, expression: str) -> Schema:
    for form, keywords in _CEL:
        if match := re.fullmatch(form, expression):
            return keywords(kind, match)
    raise Undocumented(f"{name}: there is no JSON Schema for the rule {expression}")


def _joined(schemas: Iterable[Schema]) -> Schema:
    """Return one schema with all keywords. Where two have different values, the later one is in `allOf`."""
    joined: Schema = {}
    for schema in schemas:
        if any(joined.get(keyword, value) != value for keyword, value in schema.items()):
            joined.setdefault("allOf", []).append(schema)
        else:
            joined |= schema
    return joined


# ---------------------------------------------------------------- messages


def request_schema(image: Image, message: Message, path_fields: Collection[str]) -> Schema:
    """Return the schema of a JSON body. A member that may be absent may also be null. Raises Undocumented."""
    fields = [field for field in message.fields if field.name not in path_fields]
    members = {field.name: value_schema(image, field) for field in fields}
    if inner := [field.full_name for field in fields if field.proto.type_name in image.messages]:
        raise Undocumented(f"{inner[0]}: there is no JSON Schema for a message inside a request")
    required = [field.name for field in fields if is_required(field)]
    properties = {name: each if name in required else _or_null(each) for name, each in members.items()}
    return _object(message, properties, required) | {"additionalProperties": False}


def response_schema(image: Image, message: Message) -> Schema:
    """Return the schema of a printed message. All is always printed but what is `optional`. Raises Undocumented."""
    properties = {field.name: value_schema(image, field) for field in message.fields}
    if "success" in properties:
        properties["success"]["enum"] = [message.name != "ErrorResponse"]
    return _object(message, properties, [field.name for field in message.fields if not field.proto.proto3_optional])


def is_required(field: Field) -> bool:
    """Whether a request must have the field: it has no presence, and a rule that its default value breaks."""
    return not field.proto.proto3_optional and FIELD_RULES in field.options


def value_schema(image: Image, field: Field) -> Schema:
    """Return the schema of a field's value, with its comment. Raises Undocumented."""
    rules = field.options.get(FIELD_RULES, {})
    value = _type_schema(image, field)
    if field.is_repeated:
        of_items = rules.get("repeated", {}).get("items", {})
        items = value | _keywords(f"{field.full_name}[]", value.get("type", ""), of_items)
        value = {"type": "array", "items": items}
    return value | _keywords(field.full_name, value.get("type", ""), rules) | {"description": field.comment}


def rule_of(field: Field) -> str | None:
    """Return the text for a field at fault: that of its first rule."""
    rules = field.options.get(FIELD_RULES, {}).get("cel", ())
    return rules[0]["message"] if rules else None


def _type_schema(image: Image, field: Field) -> Schema:
    if field.proto.HasField("oneof_index") and not field.proto.proto3_optional:
        raise Undocumented(f"{field.full_name}: there is no JSON Schema for a oneof")
    if scalar := SCALARS.get(field.proto.type):
        return dict(scalar)
    if well_known := WELL_KNOWN.get(field.proto.type_name):
        return dict(well_known)
    if field.proto.type_name in image.messages and not field.proto.type_name.startswith(".google."):
        return {"$ref": f"#/components/schemas/{image.messages[field.proto.type_name].name}"}
    raise Undocumented(f"{field.full_name}: there is no JSON Schema for its type")


def refuse_message_rules(message: Message) -> None:
    if MESSAGE_RULES in message.options:
        raise Undocumented(f"{message.name}: there is no JSON Schema for the rules of a whole message")


def _object(message: Message, properties: dict[str, Schema], required: Sequence[str]) -> Schema:
    refuse_message_rules(message)
    schema = {"type": "object", "description": message.comment, "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _or_null(schema: Schema) -> Schema:
    null = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"]} | null
