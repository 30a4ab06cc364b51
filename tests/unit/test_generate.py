"""The Lua tables that `make gen` writes for the edge: each type has the right JSON shape, or is refused by name."""

import re

import pytest
from google.api import annotations_pb2, http_pb2
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

from protos.edge_tables import UnsupportedRoute, errors_lua, rest_lua
from protos.shapes import UnsupportedType, body_shape, query_shape
from server.errors import AT_THE_EDGE, ERRORS

WELL_KNOWN = [any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2]
SHAPES = {
    "double": '"number"',
    "float": '"number"',
    "int32": '"int32"',
    "uint32": '"uint32"',
    "sint32": '"int32"',
    "fixed32": '"uint32"',
    "sfixed32": '"int32"',
    "int64": '"string"',
    "uint64": '"string"',
    "sint64": '"string"',
    "fixed64": '"string"',
    "sfixed64": '"string"',
    "bool": '"boolean"',
    "string": '"string"',
    "bytes": '"string"',
    ".test.Color": '"string"',
    ".google.protobuf.Timestamp": '"string"',
    ".google.protobuf.Duration": '"string"',
    ".google.protobuf.FieldMask": '"string"',
    ".google.protobuf.DoubleValue": '"number"',
    ".google.protobuf.FloatValue": '"number"',
    ".google.protobuf.Int64Value": '"string"',
    ".google.protobuf.UInt64Value": '"string"',
    ".google.protobuf.Int32Value": '"int32"',
    ".google.protobuf.UInt32Value": '"uint32"',
    ".google.protobuf.BoolValue": '"boolean"',
    ".google.protobuf.StringValue": '"string"',
    ".google.protobuf.BytesValue": '"string"',
}
OBJECTS = {".google.protobuf.Empty": "{}", ".test.Inner": '{ text = "string" }'}
REFUSED = [f".google.protobuf.{name}" for name in ("Any", "Struct", "Value", "ListValue", "NullValue")]
ENUMS = {".test.Color", ".google.protobuf.NullValue"}


def add_field(message, name, of, *, repeated=False, **more):
    """Add a field to a message. `of` is a scalar's name, or the full name of an enum or a message after a dot."""
    field = message.field.add(name=name, number=len(message.field) + 1, **more)
    field.label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    if of.startswith("."):
        field.type_name = of
        field.type = FieldDescriptorProto.TYPE_ENUM if of in ENUMS else FieldDescriptorProto.TYPE_MESSAGE
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{of.upper()}")


def new_file():
    """A file with a message Request that has no fields yet, a message Inner and an enum Color."""
    file = FileDescriptorProto(name="test.proto", package="test", syntax="proto3")
    file.dependency.extend(module.DESCRIPTOR.name for module in WELL_KNOWN)
    file.message_type.add(name="Request")
    add_field(file.message_type.add(name="Inner"), "text", "string")
    file.enum_type.add(name="Color").value.add(name="RED", number=0)
    return file


def files_with(file):
    """The file after those that it can import, as protoc orders them."""
    modules = [descriptor_pb2, http_pb2, annotations_pb2, *WELL_KNOWN]
    return FileDescriptorSet(
        file=[*(FileDescriptorProto.FromString(m.DESCRIPTOR.serialized_pb) for m in modules), file]
    )


def request_of(file):
    pool = DescriptorPool()
    for each in files_with(file).file:
        pool.AddSerializedFile(each.SerializeToString())
    return pool.FindMessageTypeByName("test.Request")


def request_with(of, **more):
    """The descriptor of a request whose one field, `value`, has this type."""
    file = new_file()
    add_field(file.message_type[0], "value", of, **more)
    return request_of(file)


# ---------------------------------------------------------------- the shape of each type


def test_this_test_knows_every_scalar_type_and_every_well_known_message():
    named = {f".{module.DESCRIPTOR.package}.{name}" for module in WELL_KNOWN
             for name in (*module.DESCRIPTOR.message_types_by_name, *module.DESCRIPTOR.enum_types_by_name)}  # fmt: skip
    scalars = {name.removeprefix("TYPE_").lower() for name in dict(FieldDescriptorProto.Type.items())}
    known = {*SHAPES, *OBJECTS, *REFUSED}
    assert known == named | scalars - {"enum", "message", "group"} | {".test.Color", ".test.Inner"}


@pytest.mark.parametrize(("of", "shape"), (SHAPES | OBJECTS).items())
def test_each_type_has_the_shape_of_its_json(of, shape):
    assert body_shape(request_with(of)) == f"{{ value = {shape} }}"


@pytest.mark.parametrize(("of", "shape"), (SHAPES | OBJECTS).items())
def test_a_repeated_field_is_a_list_of_such_values(of, shape):
    assert body_shape(request_with(of, repeated=True)) == f"{{ value = {{ {shape} }} }}"


@pytest.mark.parametrize(("of", "shape"), SHAPES.items())
def test_a_query_takes_single_values_and_lists_of_them(of, shape):
    assert query_shape(request_with(of)) == f"{{ value = {shape} }}"
    assert query_shape(request_with(of, repeated=True)) == f"{{ value = {{ {shape} }} }}"


@pytest.mark.parametrize("of", OBJECTS)
def test_an_object_in_a_query_is_refused(of):
    with pytest.raises(UnsupportedType, match=r"test\.Request\.value"):
        query_shape(request_with(of))


@pytest.mark.parametrize("of", REFUSED)
@pytest.mark.parametrize("repeated", [False, True])
def test_a_type_whose_json_has_no_fixed_shape_is_refused_by_the_name_of_its_field(of, repeated):
    with pytest.raises(UnsupportedType, match=rf"test\.Request\.value: {of[1:]}: "):
        body_shape(request_with(of, repeated=repeated))


def test_a_field_deep_inside_is_refused_by_its_own_name():
    file = new_file()
    add_field(file.message_type[0], "value", ".test.Inner")
    add_field(file.message_type[1], "extra", ".google.protobuf.Struct")
    with pytest.raises(UnsupportedType, match=r"test\.Inner\.extra"):
        body_shape(request_of(file))


def test_a_map_is_refused():
    file = new_file()
    entry = file.message_type[0].nested_type.add(name="TagsEntry")
    entry.options.map_entry = True
    add_field(entry, "key", "string")
    add_field(entry, "value", "string")
    add_field(file.message_type[0], "tags", ".test.Request.TagsEntry", repeated=True)
    with pytest.raises(UnsupportedType, match=r"test\.Request\.tags: .* map"):
        body_shape(request_of(file))


def test_a_message_that_contains_itself_is_refused():
    file = new_file()
    add_field(file.message_type[0], "inner", ".test.Inner")
    add_field(file.message_type[1], "outer", ".test.Request")
    with pytest.raises(UnsupportedType, match=r"test\.Inner\.outer: test\.Request contains itself"):
        body_shape(request_of(file))


def test_a_message_may_be_used_twice():
    file = new_file()
    add_field(file.message_type[0], "first", ".test.Inner")
    add_field(file.message_type[0], "second", ".test.Inner")
    assert body_shape(request_of(file)) == '{ first = { text = "string" }, second = { text = "string" } }'


def test_each_member_of_a_oneof_is_in_the_shape():
    file = new_file()
    (request, _) = file.message_type
    request.oneof_decl.add(name="choice")
    add_field(request, "text", "string", oneof_index=0)
    add_field(request, "inner", ".test.Inner", oneof_index=0)
    assert body_shape(request_of(file)) == '{ text = "string", inner = { text = "string" } }'


def test_a_field_named_like_a_word_of_lua_is_quoted():
    file = new_file()
    add_field(file.message_type[0], "start", "string")
    add_field(file.message_type[0], "end", "string")
    assert body_shape(request_of(file)) == '{ start = "string", ["end"] = "string" }'


def test_a_field_of_the_path_is_not_in_the_shape():
    file = new_file()
    add_field(file.message_type[0], "id", "string")
    add_field(file.message_type[0], "size", "int32")
    assert body_shape(request_of(file), ["id"]) == query_shape(request_of(file), ["id"]) == '{ size = "int32" }'
    assert body_shape(request_of(file), ["id", "size"]) == "{}"


# ---------------------------------------------------------------- routes


def rest_table(*, input_type=".test.Request", **rules):
    """rest.lua for a service with one RPC per rule, all with the same request of one field, `id`."""
    file = new_file()
    file.dependency.append(annotations_pb2.DESCRIPTOR.name)
    add_field(file.message_type[0], "id", "string")
    service = file.service.add(name="Service")
    for name, rule in rules.items():
        rpc = service.method.add(name=name, input_type=input_type, output_type=".test.Request")
        if rule is not None:
            rpc.options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(**rule))
    return rest_lua(files_with(file))


def test_a_route_has_its_path_its_methods_and_what_each_takes():
    table = rest_table(
        Get={"get": "/v1/things/{id}"},
        Delete={"delete": "/v1/things/{id}"},
        List={"get": "/v1/two-words"},
        Create={"post": "/v1/two-words", "body": "*"},
        OnlyOverGrpc=None,
    )
    assert table.split("return ")[1] == (
        "{\n"
        '  { path = "^/v1/two%-words$", allow = "GET, POST",\n'
        '    GET = { query = { id = "string" } },\n'
        '    POST = { body = { id = "string" } },\n'
        "  },\n"
        '  { path = "^/v1/things/[^/]+$", allow = "DELETE, GET",\n'
        "    DELETE = { query = {} },\n"
        "    GET = { query = {} },\n"
        "  },\n"
        "}\n"
    )


def test_an_empty_request_takes_an_empty_body():
    assert "POST = { body = {} }" in rest_table(
        input_type=".google.protobuf.Empty", Ping={"post": "/v1/ping", "body": "*"}
    )


@pytest.mark.parametrize("name", ["Struct", "Timestamp", "StringValue"])
@pytest.mark.parametrize("rule", [{"put": "/v1/things", "body": "*"}, {"get": "/v1/things"}], ids=str)
def test_a_request_that_is_not_an_object_with_fixed_members_is_refused(name, rule):
    with pytest.raises(UnsupportedType, match=f"google.protobuf.{name}"):
        rest_table(input_type=f".google.protobuf.{name}", Rpc=rule)


@pytest.mark.parametrize(
    "rule",
    [
        {"post": "/v1/things", "body": "id"},
        {"get": "/v1/things", "additional_bindings": [{"get": "/v2/things"}]},
        {"get": "/v1/things", "response_body": "id"},
        {"custom": {"kind": "HEAD", "path": "/v1/things"}},
        {"get": "/v1/{id=things/*}"},
        {"get": "/v1/{id.part}"},
        {"get": "/v1/{id}:cancel"},
        {"get": "/v1/*"},
    ],
    ids=str,
)
def test_a_route_that_the_edge_cannot_serve_is_refused_by_the_name_of_its_rpc(rule):
    with pytest.raises(UnsupportedRoute, match=r"test\.Service\.Get: "):
        rest_table(Get=rule)


def test_errors_lua_has_a_row_for_each_error_of_the_edge():
    row = r'  \["(\d+)"\] = { code = "(\w+)", message = "[^"]+", grpc_status = "\d+"(, retry_after = "\d+")? },'
    _, _, *lines, _ = errors_lua().splitlines()
    found = [re.fullmatch(row, line).groups()[:2] for line in lines]
    assert found == [(str(ERRORS[code].http_status), code) for code in AT_THE_EDGE]
