"""Holds responses of the edge against openapi.json."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import jsonschema_rs

PATH = Path(__file__).parents[2] / "gen/ordernumbers/v1/openapi.json"
DOCUMENT = json.loads(PATH.read_text())
COMPONENTS = DOCUMENT["components"]


class Operation(NamedTuple):
    """One operation of the document."""

    verb: str
    template: str
    document: dict[str, Any]

    @property
    def rpc(self) -> str:
        return self.document["operationId"]

    def response(self, status: int) -> dict[str, Any]:
        """The documented response. Fails if the status is not documented."""
        responses = self.document["responses"]
        assert str(status) in responses, f"{self.rpc} may not respond {status}"
        return resolved(responses[str(status)])

    def parameters(self) -> list[dict[str, Any]]:
        """Those of the path and the query."""
        return [each for each in self.document.get("parameters", ()) if each.get("in") in ("path", "query")]

    def body(self) -> dict[str, Any] | None:
        """The content of its body, if it takes one."""
        return content_of(self.document["requestBody"]) if "requestBody" in self.document else None

    def example(self) -> dict[str, Any]:
        """The example of a request: the fields of its path, its query and its body."""
        shown = {each["name"]: each["example"] for each in self.parameters() if "example" in each}
        return shown | ((self.body() or {}).get("example") or {})

    def refusals(self) -> Iterator[tuple[int, str]]:
        """The documented statuses with their codes."""
        for status in self.document["responses"]:
            if status != "200":
                yield from ((int(status), code) for code in content_of(self.response(int(status)))["examples"])


OPERATIONS = [
    Operation(verb.upper(), template, document)
    for template, verbs in DOCUMENT["paths"].items()
    for verb, document in verbs.items()
]
BY_RPC = {operation.rpc: operation for operation in OPERATIONS}


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """What a reference names, or the node itself if it is none."""
    if "$ref" not in node:
        return node
    found: Any = DOCUMENT
    for name in node["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def content_of(response: Mapping[str, Any]) -> dict[str, Any]:
    return response["content"]["application/json"]


# ---------------------------------------------------------------- schemas


def _closed(node: Any) -> Any:
    """A copy of a schema in which no object has other members than the documented ones."""
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = {name: _closed(each) for name, each in node.items()}
    return {"additionalProperties": False} | closed if isinstance(node.get("properties"), dict) else closed


_CLOSED = _closed(COMPONENTS["schemas"])


@cache
def _validator(schema: str) -> Any:
    """A validator of the schema, a JSON text. Its references are those of the document."""
    root = {**_closed(json.loads(schema)), "components": {"schemas": _CLOSED}}
    return jsonschema_rs.Draft202012Validator(root, validate_formats=True)


def faults(schema: Mapping[str, Any], value: Any) -> list[str]:
    """What is wrong with a value."""
    errors = _validator(json.dumps(schema)).iter_errors(value)
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in errors]


# ---------------------------------------------------------------- responses


def operation_of(verb: str, target: str) -> Operation | None:
    """The operation to which the edge sends a request. The first path that fits decides, and fixed ones come first."""
    path = target.partition("?")[0]
    templates = sorted(DOCUMENT["paths"], key=lambda template: "{" in template)
    found = next((each for each in templates if re.fullmatch(re.sub(r"{\w+}", "[^/]+", each), path)), None)
    return next((each for each in OPERATIONS if (each.verb, each.template) == (verb, found)), None)


def assert_documented(operation: Operation, status: int, headers: Mapping[str, str], body: Any) -> None:
    """The operation may respond so."""
    response = operation.response(status)
    assert faults(content_of(response)["schema"], body) == []
    for name, reference in response["headers"].items():
        header = resolved(reference)
        value = headers.get(name.lower())
        assert value is not None or not header.get("required"), name
        if value is not None:
            assert faults(header["schema"], int(value) if header["schema"]["type"] == "integer" else value) == []
    assert [name for name in COMPONENTS["headers"] if name.lower() in headers and name not in response["headers"]] == []


def assert_as_documented(response: httpx.Response) -> None:
    """An event hook of httpx. A response is one that the document has. Without an operation it is some refusal."""
    request = response.request
    target = request.extensions.get("target", request.url.raw_path).decode()
    response.read()
    if operation := operation_of(request.method, target):
        assert_documented(operation, response.status_code, response.headers, response.json())
    elif response.content and response.headers["content-type"] == "application/json":
        assert faults(COMPONENTS["schemas"]["ErrorResponse"], response.json()) == []
