"""The Lua tables that `make gen` writes for the edge: rest.lua from the protos, errors.lua from server/errors.py."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import grpc
from google.api import annotations_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from protos.shapes import body_shape, query_shape
from server.errors import AT_THE_EDGE, ERRORS, ErrorSpec


class UnsupportedRoute(ValueError):
    """envoy/edge.lua cannot serve this `google.api.http` option. The message names the RPC and the reason."""


class Route(NamedTuple):
    """One HTTP method of one path."""

    path: str
    """A Lua pattern of the whole path."""
    verb: str
    takes: str
    """A member of a Lua table: `body` or `query` with its shape."""


# ---------------------------------------------------------------- rest.lua


def rest_lua(descriptors: FileDescriptorSet) -> str:
    """Return the text of rest.lua. Raises UnsupportedRoute and UnsupportedType."""
    lines = [
        "-- Generated from protos/ by `make gen`. Do not edit. The REST routes, fixed paths first: a path pattern, and",
        "-- for each method the shape of its JSON body or of its query.",
        "return {",
    ]
    for path, methods in _by_path(_routes(descriptors.file)):
        lines.append(f'  {{ path = "^{path}$", allow = "{", ".join(sorted(methods))}",')
        lines += [f"    {verb} = {{ {takes} }}," for verb, takes in sorted(methods.items())]
        lines.append("  },")
    return "\n".join([*lines, "}", ""])


def _by_path(routes: Iterable[Route]) -> list[tuple[str, dict[str, str]]]:
    """Return each path with its methods, in the order in which edge.lua tries them."""
    paths: dict[str, dict[str, str]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.verb] = route.takes
    # It uses the first path that matches. /things/{id} also matches /things/all, so fixed paths come first.
    return sorted(paths.items(), key=lambda item: (item[0].count("[^/]"), item[0]))


def _routes(files: Iterable[FileDescriptorProto]) -> list[Route]:
    """Return the routes of all RPCs with the option `google.api.http`."""
    # protoc writes each file after those that it imports, as the pool needs them.
    pool = DescriptorPool()
    routes = []
    for file in files:
        pool.AddSerializedFile(file.SerializeToString())
        for service in file.service:
            rpcs = [rpc for rpc in service.method if rpc.options.HasExtension(annotations_pb2.http)]
            routes += [_route(f"{file.package}.{service.name}.{rpc.name}", rpc, pool) for rpc in rpcs]
    return routes


def _route(name: str, rpc: MethodDescriptorProto, pool: DescriptorPool) -> Route:
    rule = rpc.options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    if verb is None or verb == "custom":
        raise UnsupportedRoute(f"{name}: its HTTP method must be get, put, post, delete or patch")
    if rule.additional_bindings or rule.response_body:
        raise UnsupportedRoute(f"{name}: additional_bindings and response_body are not supported")
    template = getattr(rule, verb)
    takes = _takes(name, rule.body, pool.FindMessageTypeByName(rpc.input_type.removeprefix(".")), template)
    return Route(_path_pattern(name, template), verb.upper(), takes)


def _takes(name: str, body: str, message: Descriptor, template: str) -> str:
    path_fields = re.findall(r"{(\w+)}", template)
    match body:
        case "*":
            return f"body = {body_shape(message, path_fields)}"
        case "":
            return f"query = {query_shape(message, path_fields)}"
    raise UnsupportedRoute(f'{name}: the body must be "*" or absent, not "{body}"')


def _path_pattern(name: str, template: str) -> str:
    """Return the Lua pattern of a path template. Each segment is plain text or one variable, `{name}`."""
    segments = template.split("/")
    for segment in segments:
        if not re.fullmatch(r"{\w+}|[\w.-]*", segment, re.ASCII):
            raise UnsupportedRoute(f"{name}: {template}: {segment} is neither plain text nor a variable {{name}}")
    return "/".join("[^/]+" if "{" in segment else re.sub(r"([-.])", r"%\1", segment) for segment in segments)


# ---------------------------------------------------------------- errors.lua


def errors_lua() -> str:
    """Return the text of errors.lua: the errors that the edge itself responds with, by HTTP status."""
    lines = [
        "-- Generated from server/errors.py by `make gen`. Do not edit. The errors of the edge itself, by HTTP status.",
        "return {",
        *(f'  ["{ERRORS[code].http_status}"] = {_error(code, ERRORS[code])},' for code in AT_THE_EDGE),
    ]
    return "\n".join([*lines, "}", ""])


def _error(code: str, spec: ErrorSpec) -> str:
    number = getattr(grpc.StatusCode, spec.grpc_status).value[0]
    members = {"code": code, "message": spec.message, "grpc_status": number, "retry_after": spec.retry_seconds}
    # Every value is a string, because the edge copies it into a header.
    return "{ " + ", ".join(f'{name} = "{value}"' for name, value in members.items() if value is not None) + " }"
