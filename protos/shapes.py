"""The shape of a message's JSON: the Lua table with which envoy/json.lua compares the body of a request.

The protobuf JSON mapping (protobuf.dev/programming-guides/json) gives the JSON of each type. If it allows several
spellings, the shape has the one that protobuf itself writes. json.lua checks fixed member names, and one kind of value
per member. A type that needs more than that is refused by name.
"""

from collections.abc import Collection, Iterable

from google.protobuf.descriptor import Descriptor, FieldDescriptor

STRING, NUMBER, INT32, UINT32, BOOLEAN = '"string"', '"number"', '"int32"', '"uint32"', '"boolean"'

SCALARS = {
    FieldDescriptor.TYPE_BOOL: BOOLEAN,
    FieldDescriptor.TYPE_BYTES: STRING,  # in base64
    FieldDescriptor.TYPE_DOUBLE: NUMBER,
    FieldDescriptor.TYPE_ENUM: STRING,  # the name of the value
    FieldDescriptor.TYPE_FIXED32: UINT32,
    FieldDescriptor.TYPE_FIXED64: STRING,  # as all 64-bit integers, because JSON readers round large numbers
    FieldDescriptor.TYPE_FLOAT: NUMBER,
    FieldDescriptor.TYPE_INT32: INT32,
    FieldDescriptor.TYPE_INT64: STRING,
    FieldDescriptor.TYPE_SFIXED32: INT32,
    FieldDescriptor.TYPE_SFIXED64: STRING,
    FieldDescriptor.TYPE_SINT32: INT32,
    FieldDescriptor.TYPE_SINT64: STRING,
    FieldDescriptor.TYPE_STRING: STRING,
    FieldDescriptor.TYPE_UINT32: UINT32,
    FieldDescriptor.TYPE_UINT64: STRING,
}
# Messages that are not an object in JSON. Empty is not here, because it is an object without members.
WELL_KNOWN = {
    "google.protobuf.BoolValue": BOOLEAN,
    "google.protobuf.BytesValue": STRING,
    "google.protobuf.DoubleValue": NUMBER,
    "google.protobuf.Duration": STRING,
    "google.protobuf.FieldMask": STRING,
    "google.protobuf.FloatValue": NUMBER,
    "google.protobuf.Int32Value": INT32,
    "google.protobuf.Int64Value": STRING,
    "google.protobuf.StringValue": STRING,
    "google.protobuf.Timestamp": STRING,
    "google.protobuf.UInt32Value": UINT32,
    "google.protobuf.UInt64Value": STRING,
}
REFUSED = {
    "google.protobuf.Any": "its members depend on its @type",
    "google.protobuf.ListValue": "its elements may be of any kind",
    "google.protobuf.NullValue": "its only value is null, which the edge reads as an absent member",
    "google.protobuf.Struct": "its members may have any name",
    "google.protobuf.Value": "it may be of any kind",
}
# fmt: off
LUA_KEYWORDS = {
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in", "local", "nil",
    "not", "or", "repeat", "return", "then", "true", "until", "while",
}
# fmt: on


class UnsupportedType(TypeError):
    """The edge cannot check the JSON of this type. The message names the field and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"envoy/json.lua cannot check {name}: {reason}. Use another type, or extend json.lua.")


def body_shape(message: Descriptor, path_fields: Collection[str] = ()) -> str:
    """Return the shape of a JSON body: all fields of the message but those in the path. Raises UnsupportedType."""
    return _object(_fields(message, path_fields), (message,))


def query_shape(message: Descriptor, path_fields: Collection[str] = ()) -> str:
    """Return the shape of a query: all fields of the message but those in the path. Raises UnsupportedType."""
    fields = _fields(message, path_fields)
    for field in fields:
        # Envoy takes the members of a sub-message as `page.size=1`, a name that edge.lua does not find in the shape.
        if field.message_type and field.message_type.full_name not in WELL_KNOWN:
            raise UnsupportedType(field.full_name, "a parameter of a query is a single value or a list of them")
    return _object(fields, (message,))


def _fields(request: Descriptor, path_fields: Collection[str]) -> list[FieldDescriptor]:
    """Return the fields of a whole request that are not in its path."""
    if request.full_name in WELL_KNOWN or request.full_name in REFUSED:
        raise UnsupportedType(request.full_name, "a request must be an object with fixed members")
    return [field for field in request.fields if field.name not in path_fields]


def _object(fields: Iterable[FieldDescriptor], parents: tuple[Descriptor, ...]) -> str:
    """Return the shape of an object with these members."""
    # All members of a oneof are among them. Envoy's transcoder refuses two of them in one object.
    members = [f"{lua_name(field.name)} = {_member(field, parents)}" for field in fields]
    return f"{{ {', '.join(members)} }}" if members else "{}"


def lua_name(name: str) -> str:
    """Return the name as a key of a Lua table."""
    # A word of the language, such as `end`, would be a syntax error, and Envoy would not start.
    return f'["{name}"]' if name in LUA_KEYWORDS else name


def _member(field: FieldDescriptor, parents: tuple[Descriptor, ...]) -> str:
    value = _value(field, parents)
    return f"{{ {value} }}" if field.is_repeated else value


def _value(field: FieldDescriptor, parents: tuple[Descriptor, ...]) -> str:
    """Return the shape of one value of the field. `parents` are the messages around it, outermost first."""
    named_type = field.message_type or field.enum_type
    if named_type and named_type.full_name in REFUSED:
        raise UnsupportedType(field.full_name, f"{named_type.full_name}: {REFUSED[named_type.full_name]}")
    if field.message_type:
        return WELL_KNOWN.get(field.message_type.full_name) or _sub_message(field, field.message_type, parents)
    return SCALARS[field.type]


def _sub_message(field: FieldDescriptor, message: Descriptor, parents: tuple[Descriptor, ...]) -> str:
    if message.GetOptions().map_entry:
        raise UnsupportedType(field.full_name, "the members of a map may have any name")
    if message in parents:
        raise UnsupportedType(field.full_name, f"{message.full_name} contains itself, so its shape has no end")
    return _object(message.fields, (*parents, message))
