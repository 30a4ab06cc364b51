"""openapi.json agrees with the routes, the rules and the table of errors. What it cannot describe stops `make gen`.

tests/contract/test_openapi.py holds the responses of the edge against it.
"""

import re

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.json_format import ParseDict

from buf.validate import validate_pb2
from ordernumbers.v1 import options_pb2
from protos.image import Image
from protos.json_schema import Undocumented, request_schema
from protos.openapi import IDEMPOTENCY_KEY, openapi_json
from server.api.service import READS
from server.errors import ERRORS
from server.rpc import idempotency_key
from server.rpc.auth import required_scope
from server.rpc.validation import violations
from server.run.embedded import demo
from tests.support.callers import RPCS, SERVICE, route_of
from tests.support.openapi import BY_RPC, COMPONENTS, OPERATIONS, PATH, content_of, faults, resolved
from tests.unit.test_rules_of_requests import BAD_LABELS, BAD_URLS, KEY, REQUESTS, REQUIRED, RULES

each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.rpc)
each_field = pytest.mark.parametrize(("rpc", "name"), [(rpc, name) for rpc, fields in RULES.items() for name in fields])


# ---------------------------------------------------------------- operations and errors


def test_each_rpc_is_an_operation_with_its_route_and_its_scope():
    assert set(BY_RPC) == set(RPCS)
    for operation in OPERATIONS:
        route = route_of(operation.rpc)
        assert (operation.verb, operation.template) == (route.verb, route.template)
        assert (operation.body() is not None) is route.takes_body
        scope = required_scope(SERVICE.methods_by_name[operation.rpc])
        assert operation.document["security"] == [{"api_key": [scope]}]


@each_operation
def test_only_a_write_takes_an_idempotency_key(operation):
    parameters = [resolved(each)["name"] for each in operation.document.get("parameters", ())]
    assert ("Idempotency-Key" in parameters) is (operation.rpc not in READS)
    assert ("Idempotency-Replayed" in operation.response(200)["headers"]) is (operation.rpc not in READS)


def test_the_whole_table_of_errors_is_documented():
    documented = {refusal for operation in OPERATIONS for refusal in operation.refusals()}
    expected = {(spec.http_status, code.value) for code, spec in ERRORS.items()} | {(400, "VALIDATION_FAILED")}
    assert documented == expected - {(405, "METHOD_NOT_ALLOWED")}
    assert "MethodNotAllowed" in COMPONENTS["responses"]
    assert COMPONENTS["schemas"]["Error"]["properties"]["code"]["enum"] == list(ERRORS)


# ---------------------------------------------------------------- examples


@each_operation
def test_each_response_has_examples_that_fit_its_schema(operation):
    for status in operation.document["responses"]:
        content = content_of(operation.response(int(status)))
        shown = {code: each["value"] for code, each in content.get("examples", {}).items()}
        for code, example in (shown or {"success": content["example"]}).items():
            assert faults(content["schema"], example) == []
            assert example["success"] is (status == "200")
            assert status == "200" or example["error"]["code"] == code


@each_operation
def test_the_example_of_a_request_fits_its_schema_and_the_rules(operation):
    for parameter in operation.parameters():
        assert "example" in parameter or not parameter["required"]
        assert "example" not in parameter or faults(parameter["schema"], parameter["example"]) == []
    if body := operation.body():
        assert faults(body["schema"], body["example"]) == []
    assert violations(ParseDict(operation.example(), REQUESTS[operation.rpc]())) == {}


def test_the_numbers_of_the_examples_are_the_demos():
    demos = {*demo.LOCAL, *demo.TOLL_FREE, *demo.SHORT_CODES}
    named = {number for operation in OPERATIONS for number in operation.example().get("numbers", ())}
    assert named
    assert named <= demos


# ---------------------------------------------------------------- rules

# The schemas are wider than these rules: whether a host is public, and whether a character is visible.
ONLY_THE_SERVICE_REFUSES = {"https://localhost", "https://10.0.0.1", "\u200b", "\ufe0f", "\U000e0020", "\u3164"}


def test_the_exceptions_are_values_of_the_rules():
    assert {*BAD_URLS, *BAD_LABELS} > ONLY_THE_SERVICE_REFUSES


def faults_of(rpc, name, value):
    """What the document says against a request with this value in one field."""
    operation = BY_RPC[rpc]
    for parameter in operation.parameters():
        if parameter["name"] == name:
            return faults(parameter["schema"], value)
    needed = {each: REQUIRED[rpc][each] for each in REQUIRED.get(rpc, ()) if each != "id"}
    return faults(operation.body()["schema"], needed | {name: value})


@each_field
def test_the_schema_accepts_each_good_value(rpc, name):
    for value in RULES[rpc][name].good:
        assert faults_of(rpc, name, value) == []


@each_field
def test_the_schema_refuses_each_bad_value(rpc, name):
    for each in RULES[rpc][name].bad:
        value = each[0] if isinstance(each, tuple) else each
        assert faults_of(rpc, name, value) or (isinstance(value, str) and value in ONLY_THE_SERVICE_REFUSES), value


@each_operation
def test_the_required_fields_are_those_that_an_empty_request_lacks(operation):
    required = {each["name"] for each in operation.parameters() if each["required"]}
    if body := operation.body():
        required |= set(resolved(body["schema"]).get("required", ()))
    assert required == set(REQUIRED.get(operation.rpc, ()))


def test_a_member_that_may_be_absent_may_be_null_and_no_other_member_may_be_there():
    for operation in OPERATIONS:
        if body := operation.body():
            members = resolved(body["schema"])["properties"]
            required = {name: value for name, value in REQUIRED.get(operation.rpc, {}).items() if name in members}
            assert faults(body["schema"], dict.fromkeys(members) | required) == []
            assert faults(body["schema"], required | {"labl": "x"})
            for name in required:
                assert faults(body["schema"], required | {name: None})


def test_the_idempotency_key_has_the_rule_that_the_service_has():
    for value in [
        *KEY.good,
        *KEY.bad,
        '"',
        'a"',
        '"a',
        '""',
        '"a"b"',
        r'"\""',
        r'"\a"',
        f'"{"k" * 255}"',
        '"' + "k" * 256,
    ]:
        key, _ = idempotency_key.read([value])
        assert (re.fullmatch(IDEMPOTENCY_KEY, value, re.ASCII) is not None) is (key is not None), value


# ---------------------------------------------------------------- what cannot be described

FILES = FileDescriptorSet.FromString(PATH.with_name("descriptors.binpb").read_bytes())


def image_with(change):
    """An image with a message Request, whose one field is changed by a function."""
    file = FileDescriptorProto(name="test.proto", package="test", syntax="proto3")
    file.dependency.extend(["buf/validate/validate.proto", "ordernumbers/v1/errors.proto"])
    message = file.message_type.add(name="Request")
    field = message.field.add(name="value", number=1, type=FieldDescriptorProto.TYPE_STRING)
    field.label = FieldDescriptorProto.LABEL_OPTIONAL
    change(message, field)
    return Image(FileDescriptorSet(file=[*FILES.file, file]))


def rules_of(field):
    return field.options.Extensions[validate_pb2.field]


def cel(expression):
    return lambda _, field: rules_of(field).cel.add(id="x", message="x", expression=expression)


def one_rule_with_empty(message, field):
    cel("this == '' || this.matches('^a$')")(message, field)
    cel("this.matches('^a$')")(message, field)


def a_type(type_, name=None):
    def change(_, field):
        field.type = type_
        if name:
            field.type_name = name

    return change


def a_oneof(message, field):
    message.oneof_decl.add(name="choice")
    field.oneof_index = 0


def a_rule_of_the_message(message, _):
    message.options.Extensions[validate_pb2.message].cel.add(id="x", message="x", expression="true")


def of_items(_, field):
    field.label = FieldDescriptorProto.LABEL_REPEATED
    rules_of(field).repeated.items.string.min_len = 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (cel("this.endsWith('x')"), r"test\.Request\.value: .*endsWith"),
        (cel("this.matches('x')"), r"test\.Request\.value: .*matches"),
        (cel(r"this.matches('^\\d$')"), r"test\.Request\.value: .*matches"),
        (one_rule_with_empty, r"test\.Request\.value: .*empty"),
        (lambda _, field: setattr(rules_of(field).string, "min_len", 1), r"test\.Request\.value: .*string"),
        (lambda _, field: setattr(rules_of(field), "required", True), r"test\.Request\.value: .*required"),
        (lambda _, field: setattr(rules_of(field).repeated, "unique", True), r"test\.Request\.value: .*unique"),
        (of_items, r"test\.Request\.value\[\]: .*string"),
        (a_rule_of_the_message, r"Request: .*rules"),
        (a_oneof, r"test\.Request\.value: .*oneof"),
        (a_type(FieldDescriptorProto.TYPE_INT64), r"test\.Request\.value: .*type"),
        (a_type(FieldDescriptorProto.TYPE_MESSAGE, ".google.protobuf.Duration"), r"test\.Request\.value: .*type"),
        (a_type(FieldDescriptorProto.TYPE_MESSAGE, ".ordernumbers.v1.Error"), r"test\.Request\.value: .*inside"),
    ],
)
def test_what_has_no_json_schema_is_refused_by_its_name(change, named):
    image = image_with(change)
    with pytest.raises(Undocumented, match=named):
        request_schema(image, image.messages[".test.Request"], ())


def rename(rpc):
    rpc.name = "SellNumbers"


def without_scope(rpc):
    rpc.options.ClearExtension(options_pb2.required_scope)


def test_a_rule_of_a_whole_request_is_refused_by_its_name():
    """Also of a request without a body, whose fields are parameters."""
    for request in [method.input_type for method in SERVICE.methods]:
        files = FileDescriptorSet.FromString(FILES.SerializeToString())
        (message,) = (each for file in files.file for each in file.message_type if each.name == request.name)
        a_rule_of_the_message(message, None)
        with pytest.raises(Undocumented, match=f"{request.name}: .*rules"):
            openapi_json(files)


@pytest.mark.parametrize(("change", "named"), [(rename, "SellNumbers: .*example"), (without_scope, "required_scope")])
def test_an_rpc_without_an_example_or_a_scope_is_refused_by_its_name(change, named):
    files = FileDescriptorSet.FromString(FILES.SerializeToString())
    (service,) = (service for file in files.file for service in file.service)
    change(service.method[0])
    with pytest.raises(Undocumented, match=named):
        openapi_json(files)
