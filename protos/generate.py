"""Writes gen/ from protos/: Python stubs with types, the descriptor set that Envoy reads, and for the edge's Lua the
shapes of the REST routes and the table of errors. `make gen` runs it. It also writes the image that buf reads:
`generate.py --image FILE`.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import grpc
import grpc_tools
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from protovalidate._gen.buf.validate import validate_pb

from server.errors import AT_THE_EDGE, ERRORS, ErrorSpec

PROTOS = Path(__file__).parent
GEN = PROTOS.parent / "gen"
OURS = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
# What a refusal carries beside our own messages: the transcoder prints `details` only of types it is given.
ERROR_DETAILS = "google/rpc/error_details.proto"


def protoc(validate: Path, *arguments: str) -> None:
    """Run protoc with protos/ and the include paths of the installed packages; its own messages tell what is wrong."""
    googleapis = Path(error_details_pb2.__file__).parents[2]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    includes = [f"-I{PROTOS}", f"-I{googleapis}", f"-I{well_known}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, f"--descriptor_set_in={validate}", *arguments]
    subprocess.run(command, check=True)


def write_validate(folder: Path) -> Path:
    """The descriptor of buf/validate/validate.proto and what it imports, out of the installed protovalidate."""
    files = FileDescriptorSet()
    files.file.add().ParseFromString(validate_pb._DESC.proto.to_binary())
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    path = folder / "validate.binpb"
    path.write_bytes(files.SerializeToString(deterministic=True))
    return path


# ---------------------------------------------------------------- rest.lua

LUA_KIND = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "boolean",
    FieldDescriptor.TYPE_INT32: "number",
    FieldDescriptor.TYPE_UINT32: "number",
}


def shape(message: Descriptor, bound: Iterable[str] = ()) -> str:
    """The members of a message as a Lua table, less those that the path binds."""
    members = (f"{field.name} = {kind(field)}" for field in message.fields if field.name not in bound)
    return "{ " + ", ".join(members) + " }"


def kind(field: FieldDescriptor) -> str:
    """How the edge reads a field. Raises KeyError, naming it, for one that edge.lua has no reader for."""
    if field.message_type is None and field.type not in LUA_KIND:
        raise KeyError(f"envoy/edge.lua cannot read {field.full_name}")
    one = shape(field.message_type) if field.message_type else f'"{LUA_KIND[field.type]}"'
    return f"{{ {one} }}" if field.is_repeated else one


def routes(files: Iterable[FileDescriptorProto]) -> list[tuple[str, dict[str, str]]]:
    """Path patterns, the most fixed first, with what each HTTP method takes."""
    pool = DescriptorPool()
    methods = []
    for file in files:
        pool.AddSerializedFile(file.SerializeToString())
        methods += [method for service in file.service for method in service.method]
    found: dict[str, dict[str, str]] = {}
    for method in methods:
        rule = method.options.Extensions[annotations_pb2.http]
        if verb := rule.WhichOneof("pattern"):
            template = getattr(rule, verb)
            pattern = re.sub(r"%{\w+%}", "[^/]+", re.sub(r"([-.{}])", r"%\1", template))
            takes = shape(pool.FindMessageTypeByName(method.input_type[1:]), re.findall(r"{(\w+)}", template))
            found.setdefault(pattern, {})[verb.upper()] = f"{'body' if rule.body else 'query'} = {takes}"
    return sorted(found.items(), key=lambda route: (route[0].count("[^/]"), route[0]))


def rest_lua(descriptors: FileDescriptorSet) -> str:
    """What the REST edge must know of the contract."""
    lines = [
        "-- Generated from protos/ by `make gen`; never edited. The REST routes, fixed paths first: a path pattern,",
        "-- and for each method the shape of the JSON body or of the query it takes.",
        "return {",
    ]
    for pattern, methods in routes(descriptors.file):
        lines.append(f'  {{ path = "^{pattern}$", allow = "{", ".join(sorted(methods))}",')
        lines += [f"    {method} = {{ {takes} }}," for method, takes in sorted(methods.items())]
        lines.append("  },")
    return "\n".join([*lines, "}", ""])


# ---------------------------------------------------------------- errors.lua


def errors_lua() -> str:
    """The rows of server/errors.py that the edge needs, by HTTP status."""
    lines = [
        "-- Generated from server/errors.py by `make gen`; never edited. What the edge answers by itself, by status.",
        "return {",
        *(f'  ["{ERRORS[code].http_status}"] = {error_lua(code, ERRORS[code])},' for code in AT_THE_EDGE),
    ]
    return "\n".join([*lines, "}", ""])


def error_lua(code: str, spec: ErrorSpec) -> str:
    """One row. Every value is text, as headers are."""
    number = getattr(grpc.StatusCode, spec.grpc_status).value[0]
    members = {"code": code, "message": spec.message, "grpc_status": number, "retry_after": spec.retry_seconds}
    return "{ " + ", ".join(f'{name} = "{value}"' for name, value in members.items() if value is not None) + " }"


# ---------------------------------------------------------------- all of it


def write_gen(validate: Path) -> None:
    """Replace gen/ with what protos/ says now."""
    for folder in ("ordernumbers", "buf"):
        shutil.rmtree(GEN / folder, ignore_errors=True)
    GEN.mkdir(exist_ok=True)
    outputs = ["python", "mypy"]
    protoc(validate, *(f"--{out}_out={GEN}" for out in outputs), "buf/validate/validate.proto", *OURS)
    contract = GEN / "ordernumbers" / "v1"
    services = [p for p in OURS if p.endswith("_service.proto")]
    protoc(validate, f"--grpc_python_out={GEN}", f"--mypy_grpc_out={GEN}", *services)
    descriptors = contract / "descriptors.binpb"
    protoc(validate, f"--descriptor_set_out={descriptors}", "--include_imports", *OURS, ERROR_DETAILS)
    (contract / "rest.lua").write_text(rest_lua(FileDescriptorSet.FromString(descriptors.read_bytes())))
    (contract / "errors.lua").write_text(errors_lua())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        validate = write_validate(Path(folder))
        match sys.argv[1:]:
            case []:
                write_gen(validate)
            case ["--image", path]:
                protoc(validate, f"--descriptor_set_out={path}", "--include_imports", "--include_source_info", *OURS)
            case _:
                sys.exit("usage: generate.py [--image FILE]")


main()
