"""Writes gen/ from protos/: `make gen` runs it.

gen/ has the Python code with its types, Envoy's descriptor set, the Lua tables of the edge, and openapi.json.
`generate.py --image FILE` writes the image that `buf lint` and `buf breaking` read, and leaves gen/ as it is.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc_tools
from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2
from protovalidate._gen.buf.validate import validate_pb

from protos.edge_tables import UnsupportedRoute, errors_lua, rest_lua
from protos.json_schema import Undocumented
from protos.openapi import openapi_json
from protos.shapes import UnsupportedType

PROTOS = Path(__file__).parent
GEN = PROTOS.parent / "gen"
OURS = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
# Envoy's transcoder writes the `details` of a refusal only for the message types in its descriptor set.
ERROR_DETAILS = "google/rpc/error_details.proto"


def main() -> None:
    """Run the command line."""
    with tempfile.TemporaryDirectory() as folder:
        validate = write_validate(Path(folder))
        match sys.argv[1:]:
            case []:
                write_gen(validate, Path(folder))
            case ["--image", path]:
                write_image(validate, path)
            case _:
                sys.exit("usage: generate.py [--image FILE]")


def write_validate(folder: Path) -> Path:
    """Write the descriptors of buf/validate/validate.proto and its imports. The installed protovalidate has them."""
    files = FileDescriptorSet()
    files.file.add().ParseFromString(validate_pb._DESC.proto.to_binary())
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    path = folder / "validate.binpb"
    path.write_bytes(files.SerializeToString(deterministic=True))
    return path


def write_gen(validate: Path, folder: Path) -> None:
    """Replace the packages in gen/. Exits with a message if the edge cannot support something in the protos."""
    write_python(validate, folder)  # not into gen/, so that an error leaves gen/ as it is
    try:
        write_edge_files(validate, folder / "ordernumbers" / "v1")
        write_openapi(validate, folder / "ordernumbers" / "v1")
    except (UnsupportedRoute, UnsupportedType, Undocumented) as error:
        sys.exit(f"generate.py: {error}")
    for package in ("ordernumbers", "buf"):
        shutil.rmtree(GEN / package, ignore_errors=True)
        shutil.copytree(folder / package, GEN / package)


def write_python(validate: Path, folder: Path) -> None:
    """Write the Python modules, and the types of each."""
    protoc(validate, f"--python_out={folder}", f"--mypy_out={folder}", "buf/validate/validate.proto", *OURS)
    # Only services: for other files these two plugins write modules without content.
    services = [path for path in OURS if path.endswith("_service.proto")]
    protoc(validate, f"--grpc_python_out={folder}", f"--mypy_grpc_out={folder}", *services)


def write_edge_files(validate: Path, folder: Path) -> None:
    """Write what the edge reads: the descriptor set, rest.lua and errors.lua."""
    descriptors = folder / "descriptors.binpb"
    protoc(validate, f"--descriptor_set_out={descriptors}", "--include_imports", *OURS, ERROR_DETAILS)
    (folder / "rest.lua").write_text(rest_lua(FileDescriptorSet.FromString(descriptors.read_bytes())))
    (folder / "errors.lua").write_text(errors_lua())


def write_openapi(validate: Path, folder: Path) -> None:
    """Write openapi.json."""
    image = folder.parents[1] / "image.binpb"
    write_image(validate, image)
    (folder / "openapi.json").write_text(openapi_json(FileDescriptorSet.FromString(image.read_bytes())))


def write_image(validate: Path, path: Path | str) -> None:
    """Write the descriptors of all protos with their comments."""
    protoc(validate, f"--descriptor_set_out={path}", "--include_imports", "--include_source_info", *OURS)


def protoc(validate: Path, *arguments: str) -> None:
    """Run protoc with protos/ and the include paths of the installed packages. It prints its own errors."""
    googleapis = Path(error_details_pb2.__file__).parents[2]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    includes = [f"-I{PROTOS}", f"-I{googleapis}", f"-I{well_known}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, f"--descriptor_set_in={validate}", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
