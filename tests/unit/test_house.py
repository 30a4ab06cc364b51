"""The house: which way imports run, and what must agree though it lives in two places."""

import ast
from pathlib import Path

import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from ordernumbers.v1 import errors_pb2
from server.auth import required_scope
from server.config import HEADERS_BYTES_MAX, HEADERS_MAX, NUMBERS_PER_ORDER_MAX, REQUEST_BODY_BYTES_MAX
from server.errors import AT_THE_EDGE, TABLE, Code
from server.keys import SCOPES
from server.rpc import SERVICE

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server"
# A module may import those after it in this list, and the leaves.
ORDER = [
    "cli",
    "local",
    "process",
    "rpc",
    "service",
    "batching",
    "order_connection",
    "pending",
    "store.orders",
    "ordering",
]
LEAVES = {"config", "errors", "keys", "money"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def module(path):
    return ".".join(path.relative_to(SERVER).with_suffix("").parts)


def rank(name):
    return next((i for i, prefix in enumerate(ORDER) if name == prefix or name.startswith(prefix + ".")), None)


def ours(path):
    return [name.removeprefix("server.") for name in imports(path) if name.startswith("server.")]


@pytest.mark.parametrize("path", sorted(SERVER.rglob("*.py")), ids=module)
def test_imports_run_one_way(path):
    mine = rank(module(path))
    for name in ours(path):
        theirs = rank(name)
        assert mine is None or theirs is None or theirs >= mine, f"{module(path)} imports {name}"
    if module(path) in LEAVES:
        assert {name.split(".")[0] for name in ours(path)} <= LEAVES


def test_the_decision_knows_neither_grpc_nor_sql():
    seen, waiting = set(), {"ordering"}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = SERVER / (name.replace(".", "/") + ".py")
        assert not {i.split(".")[0] for i in imports(path)} & {
            "grpc",
            "psycopg",
            "sqlalchemy",
            "google",
            "ordernumbers",
        }
        found = {candidate for i in ours(path) for candidate in (i, i.rpartition(".")[0]) if candidate}
        waiting |= {n for n in found if (SERVER / (n.replace(".", "/") + ".py")).is_file()} - seen
    assert "errors" in seen


def test_every_code_has_its_meaning():
    assert set(TABLE) == set(Code)


def test_the_edge_finds_each_of_its_errors_by_the_status():
    statuses = [TABLE[code].http_status for code in AT_THE_EDGE]
    assert len(set(statuses)) == len(statuses)


def test_every_method_declares_a_scope_that_keys_can_have():
    assert {required_scope(method) for method in SERVICE.methods} <= set(SCOPES)


def test_the_edge_has_every_message_that_a_refusal_carries():
    files = FileDescriptorSet.FromString((Path(errors_pb2.__file__).parent / "descriptors.binpb").read_bytes())
    messages = {f"{file.package}.{message.name}" for file in files.file for message in file.message_type}
    assert {"google.rpc.ErrorInfo", "ordernumbers.v1.ErrorResponse", "google.protobuf.Struct"} <= messages


def test_the_limits_of_the_protos_and_of_envoy_are_those_of_the_settings():
    proto = (ROOT / "protos/ordernumbers/v1/phone_number_service.proto").read_text()
    assert f"size(this) <= {NUMBERS_PER_ORDER_MAX}" in proto
    (listener,) = yaml.safe_load((ROOT / "envoy/envoy.yaml").read_text())["static_resources"]["listeners"]
    assert listener["per_connection_buffer_limit_bytes"] == REQUEST_BODY_BYTES_MAX
    edge = (ROOT / "envoy/edge.lua").read_text()
    assert f"HEADERS_BYTES_MAX, HEADERS_MAX = {HEADERS_BYTES_MAX}, {HEADERS_MAX}\n" in edge
