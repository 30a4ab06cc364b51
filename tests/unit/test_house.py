"""The house: which way imports run, and what must agree though it lives in two places."""

import ast
from pathlib import Path

import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from ordernumbers.v1 import errors_pb2
from ordernumbers.v1.inventory_pb2 import SearchNumbersRequest
from ordernumbers.v1.orders_pb2 import BulkOrderNumbersRequest, OrderNumbersRequest
from ordernumbers.v1.phone_numbers_pb2 import PhoneNumber, UpdateNumberRequest
from server.config import HEADERS_BYTES_MAX, HEADERS_MAX, NUMBERS_PER_ORDER_MAX, REQUEST_BODY_BYTES_MAX
from server.errors import AT_THE_EDGE, ERRORS, Code
from server.rpc.auth import required_scope
from server.rpc.server import SERVICE
from server.rules.values import AssignedNumber, Criteria, Routing
from server.scopes import SCOPES

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server"
# A module may import those of its own layer and of the layers below it. A package is a layer with all its modules.
LAYERS = [
    {"cli"},
    {"run"},
    {"rpc"},
    {"api"},
    {"admission", "batching", "one_by_one", "pending", "reading", "write_connection", "writing"},
    {"store"},
    {"messages"},
    {"rules"},
    {"tracing"},
    {"spans"},
    {
        "certificates",
        "config",
        "deadlines",
        "errors",
        "keys",
        "log",
        "metrics",
        "money",
        "scopes",
        "server_addresses",
        "traceparent",
    },
]


def imported(node):
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{name.name}" for name in node.names)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        yield from imported(node)


def module(path):
    return ".".join(path.relative_to(SERVER).with_suffix("").parts)


def layer(name):
    return next(i for i, names in enumerate(LAYERS) if name.split(".")[0] in names)


def ours(path):
    return [name.removeprefix("server.") for name in imports(path) if name.startswith("server.")]


def modules_reached(path):
    """All modules of ours that are imported with this one, by the names at the top of each file."""
    seen, waiting = set(), {path}
    while waiting:
        seen.add(path := waiting.pop())
        tops = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {name for node in tops for name in imported(node) if name.startswith("server.")}
        files = {SERVER.parent / (part.replace(".", "/") + ".py") for n in names for part in (n, n.rpartition(".")[0])}
        waiting |= {file for file in files if file.is_file()} - seen
    return seen


@pytest.mark.parametrize("path", sorted(SERVER.rglob("*.py")), ids=module)
def test_imports_run_one_way(path):
    if path != SERVER / "__init__.py":
        mine = layer(module(path))
        for name in ours(path):
            assert layer(name) >= mine, f"{module(path)} imports {name}"


def test_the_edge_command_imports_no_grpc():
    found = {name.split(".")[0] for path in modules_reached(SERVER / "run/edge.py") for name in imports(path)}
    assert "yaml" in found
    assert "grpc" not in found


def test_the_decision_knows_neither_grpc_nor_sql():
    reached = modules_reached(SERVER / "rules/ordering.py")
    assert SERVER / "errors.py" in reached
    found = {name.split(".")[0] for path in reached for name in imports(path)}
    assert not found & {"grpc", "psycopg", "sqlalchemy", "google", "ordernumbers"}


def test_a_worker_without_traces_needs_no_opentelemetry():
    reached = modules_reached(SERVER / "run/worker.py")
    assert SERVER / "tracing.py" in reached
    assert SERVER / "spans.py" not in reached


def test_every_code_has_its_meaning():
    assert set(ERRORS) == set(Code)


def test_the_edge_finds_each_of_its_errors_by_the_status():
    statuses = [ERRORS[code].http_status for code in AT_THE_EDGE]
    assert len(set(statuses)) == len(statuses)


def test_every_method_declares_a_scope_that_keys_can_have():
    assert {required_scope(method) for method in SERVICE.methods} <= set(SCOPES)


def test_the_edge_has_every_message_that_a_refusal_carries():
    files = FileDescriptorSet.FromString((Path(errors_pb2.__file__).parent / "descriptors.binpb").read_bytes())
    messages = {f"{file.package}.{message.name}" for file in files.file for message in file.message_type}
    assert {"google.rpc.ErrorInfo", "ordernumbers.v1.ErrorResponse", "google.protobuf.Struct"} <= messages


def test_the_limits_of_the_protos_and_of_envoy_are_those_of_the_settings():
    protos = {path.stem: path.read_text() for path in (ROOT / "protos/ordernumbers/v1").glob("*.proto")}
    for name in ("orders", "inventory", "phone_numbers"):
        assert f"size(this) <= {NUMBERS_PER_ORDER_MAX}" in protos[name]
        assert f"this >= 1u && this <= {NUMBERS_PER_ORDER_MAX}u" in protos[name]
    (listener,) = yaml.safe_load((ROOT / "envoy/envoy.yaml").read_text())["static_resources"]["listeners"]
    assert listener["per_connection_buffer_limit_bytes"] == REQUEST_BODY_BYTES_MAX
    edge = (ROOT / "envoy/edge.lua").read_text()
    assert f"HEADERS_BYTES_MAX, HEADERS_MAX = {HEADERS_BYTES_MAX}, {HEADERS_MAX}\n" in edge


def fields_of(message):
    return {field.name for field in message.DESCRIPTOR.fields}


@pytest.mark.parametrize("message", [PhoneNumber, OrderNumbersRequest, BulkOrderNumbersRequest, UpdateNumberRequest])
def test_each_message_with_settings_of_numbers_has_all_of_them(message):
    # For PhoneNumber: otherwise the response could not be made, after the order was carried out.
    assert set(Routing._fields) <= fields_of(message)


@pytest.mark.parametrize("message", [SearchNumbersRequest, BulkOrderNumbersRequest])
def test_a_search_and_a_bulk_order_have_the_same_criteria(message):
    assert set(Criteria._fields) <= fields_of(message)


def test_a_response_has_every_field_of_an_assigned_number():
    assert set(AssignedNumber._fields) == fields_of(PhoneNumber)


@pytest.mark.parametrize(
    "names",
    [
        ("GetOrderResponse", "FindOrderResponse"),
        ("BulkOrderNumbersResponse", "GetBulkOrderResponse"),
        ("HoldNumbersResponse", "GetHoldResponse"),
        ("GetNumberResponse", "UpdateNumberResponse", "AttachCampaignResponse", "DetachCampaignResponse"),
    ],
)
def test_messages_that_one_function_makes_are_alike(names):
    # server/messages.py makes the bytes of one of them, and they are sent for all of them.
    layouts = [layout(method.output_type) for method in SERVICE.methods if method.output_type.name in names]
    assert len(layouts) == len(names)
    assert all(each == layouts[0] for each in layouts)


def layout(message):
    return [
        (field.number, field.name, field.type, field.is_repeated, field.message_type and field.message_type.full_name)
        for field in message.fields
    ]
