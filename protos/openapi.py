"""openapi.json: the REST API as OpenAPI 3.1, from the protos, server/errors.py and docs/errors.md.

It has one operation per RPC with the option `google.api.http`, and one schema per code of an error.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protos import openapi_examples as examples
from protos.image import Image, Method, file_comment
from protos.json_schema import Schema, Undocumented, is_required, request_schema, response_schema, rule_of, value_schema
from server.errors import ERRORS, Code

ERRORS_PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
SCHEMAS = "#/components/schemas/"
REQUEST_ID = "^([0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$"
# As server/rpc/idempotency_key.py reads it.
IDEMPOTENCY_KEY = r'^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$'
IDEMPOTENCY_KEY_AT_FAULT = {"idempotency-key": "must be one of 1..255 visible ASCII characters"}

EVERY_CALL = (
    Code.INVALID_INPUT,
    Code.UNAUTHORIZED,
    Code.FORBIDDEN,
    Code.REQUEST_TIMEOUT,
    Code.PAYLOAD_TOO_LARGE,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.VALIDATION_FAILED,
    Code.UPGRADE_REQUIRED,
    Code.RATE_LIMITED,
    Code.HEADERS_TOO_LARGE,
    Code.INTERNAL,
    Code.UNAVAILABLE,
    Code.TIMEOUT,
)
EVERY_WRITE = (Code.IDEMPOTENCY_IN_PROGRESS, Code.IDEMPOTENCY_KEY_REUSED)
SOME_CALLS: Mapping[str, Sequence[Code]] = {
    "OrderNumbers": (Code.INSUFFICIENT_CREDIT, Code.NOT_FOUND, Code.INSUFFICIENT_INVENTORY),
    "BulkOrderNumbers": (Code.INSUFFICIENT_CREDIT, Code.NOT_FOUND, Code.INSUFFICIENT_INVENTORY),
    "HoldNumbers": (Code.INSUFFICIENT_INVENTORY, Code.LIMIT_EXCEEDED),
    "FindOrder": (Code.NOT_FOUND,),
}
"""The refusals of each call. A call with an id in its path has NOT_FOUND, too."""


def openapi_json(files: FileDescriptorSet) -> str:
    """Return the text of openapi.json, from an image with source info. Raises Undocumented."""
    image = Image(files)
    operations = [_Operation(image, method) for method in image.methods() if HTTP in method.options]
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.verb] = operation.document()
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "OrderNumbers",
            "version": "v1",
            "description": image.service_comment(),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": list({_tag(each.method): {"name": _tag(each.method), "description": file_comment(each.method.file)}
                      for each in operations}.values()),
        "paths": paths,
        "components": _components(image, operations),
    }  # fmt: skip
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- operations

HTTP, SCOPE = "[google.api.http]", "[ordernumbers.v1.required_scope]"


def _tag(method: Method) -> str:
    return Path(method.file.name).stem.replace("_", " ")


class _Operation:
    """One RPC over REST."""

    def __init__(self, image: Image, method: Method) -> None:
        self.image, self.method = image, method
        if not (method.name in examples.REQUESTS and method.name in examples.RESPONSES):
            raise Undocumented(f"{method.full_name}: protos/openapi_examples.py has no example of it")
        rule = dict(method.options[HTTP])
        self.has_body = rule.pop("body", "") == "*"
        ((self.verb, self.path),) = rule.items()  # edge_tables.py has refused everything else
        self.path_fields = re.findall(r"{(\w+)}", self.path)
        self.is_write = method.options.get("idempotency_level") != "NO_SIDE_EFFECTS"

    def document(self) -> Schema:
        scope = self.method.options[SCOPE]
        parameters = self._parameters()
        return {
            "operationId": self.method.name,
            "summary": self.method.comment.partition(".")[0].partition(":")[0],
            "description": f"{self.method.comment}\n\nThe API key needs the scope `{scope}`.",
            "tags": [_tag(self.method)],
            "security": [{"api_key": [scope]}],
            **({"parameters": parameters} if parameters else {}),
            **({"requestBody": self._body()} if self.has_body else {}),
            "responses": {"200": self._success()} | dict(self._refusals()),
        }

    def body_schema(self) -> Schema:
        return request_schema(self.image, self.method.request, self.path_fields)

    def codes(self) -> dict[int, list[Code]]:
        """The codes of its refusals, by HTTP status."""
        codes = {*EVERY_CALL, *SOME_CALLS.get(self.method.name, ()), *(EVERY_WRITE if self.is_write else ())}
        codes |= {Code.NOT_FOUND} if self.path_fields else set()
        found: dict[int, list[Code]] = {}
        for code in sorted(codes, key=list(Code).index):
            found.setdefault(ERRORS[code].http_status, []).append(code)
        if self.path_fields:
            found[400].append(Code.VALIDATION_FAILED)
        return dict(sorted(found.items()))

    def _parameters(self) -> list[Schema]:
        fields = [field for field in self.method.request.fields if field.name in self.path_fields or not self.has_body]
        parameters = []
        for field in fields:
            schema = value_schema(self.image, field)
            in_path = field.name in self.path_fields
            parameters.append({
                "name": field.name,
                "in": "path" if in_path else "query",
                "description": schema.pop("description"),
                "required": is_required(field),
                "style": "simple" if in_path else "form",
                "explode": not in_path,
                "schema": schema,
                **_example(examples.REQUESTS[self.method.name].get(field.name)),
            })  # fmt: skip
        return [*parameters, {"$ref": "#/components/parameters/IdempotencyKey"}] if self.is_write else parameters

    def _body(self) -> Schema:
        example = {name: value for name, value in examples.REQUESTS[self.method.name].items()
                   if name not in self.path_fields}  # fmt: skip
        content = {"schema": {"$ref": f"{SCHEMAS}{self.method.request.name}"}, "example": example}
        return {"description": self.method.request.comment, "required": True, "content": {"application/json": content}}

    def _success(self) -> Schema:
        headers = ["X-Request-Id", "Idempotency-Replayed"] if self.is_write else ["X-Request-Id"]
        schema = {"$ref": f"{SCHEMAS}{self.method.response.name}"}
        example = {"success": True} | examples.RESPONSES[self.method.name]
        return _response(self.method.response.comment, headers, schema, {"example": example})

    def _refusals(self) -> Iterable[tuple[str, Schema]]:
        for status, codes in self.codes().items():
            # The fields of each call are others.
            inline = status == ERRORS[Code.VALIDATION_FAILED].http_status
            ref = {"$ref": f"#/components/responses/{_name_of_response(codes)}"}
            yield str(status), _refusal(codes, self._fields_at_fault()) if inline else ref

    def _fields_at_fault(self) -> dict[str, str]:
        """An example of `details`: the first field that has a rule."""
        fields = (field for field in self.method.request.fields if field.name not in self.path_fields)
        faults = ({field.name: rule} for field in fields if (rule := rule_of(field)))
        return next(faults, IDEMPOTENCY_KEY_AT_FAULT)


def _example(value: Any) -> Schema:
    return {} if value is None else {"example": value}


# ---------------------------------------------------------------- refusals


def _when() -> Mapping[str, str]:
    """Return what docs/errors.md tells of each code: when it happens, and what to do next."""
    row = re.compile(r"\| \d+ \| `\w+` \| `(\w+)` \| (.*) \| (.*) \|")
    return {match[1]: f"`{match[1]}`: {match[2]} {match[3]}" for match in row.finditer(ERRORS_PAGE.read_text())}


def _camel(code: Code) -> str:
    return code.title().replace("_", "")


def _name_of_response(codes: Iterable[Code]) -> str:
    return "Or".join(map(_camel, codes))


def _refusal(codes: Sequence[Code], details: Mapping[str, str] | None = None) -> Schema:
    """Return the response with one of these codes. `details` are the example's with VALIDATION_FAILED."""
    when = _when()
    refs = [{"$ref": f"{SCHEMAS}{_camel(code)}"} for code in codes]
    headers = ["X-Request-Id", *(["Retry-After"] if any(ERRORS[code].retry_seconds for code in codes) else [])]
    headers += [HEADER_OF[code] for code in codes if code in HEADER_OF]
    shown = {code: {"value": _refusal_example(code, details)} for code in codes}
    description = "\n\n".join(when[code] for code in codes)
    return _response(description, headers, refs[0] if len(refs) == 1 else {"oneOf": refs}, {"examples": shown})


def _refusal_example(code: Code, details: Mapping[str, str] | None) -> Schema:
    more = dict(examples.REFUSALS.get(code, {}))
    error = {"code": code, "message": more.pop("message", ERRORS[code].message), "request_id": examples.REQUEST_ID}
    if code == Code.VALIDATION_FAILED and details:
        more["details"] = details
    if "details" in more:
        error["details"] = more.pop("details")
    return {"success": False, "error": error} | more


def _response(description: str, headers: Iterable[str], schema: Schema, example: Schema) -> Schema:
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {"application/json": {"schema": schema, **example}},
    }


def _refusal_schema(image: Image, code: Code) -> Schema:
    """Return the schema of ErrorResponse with this code, and with the members that it has then."""
    response, error = (response_schema(image, image.messages[f".ordernumbers.v1.{name}"])
                       for name in ("ErrorResponse", "Error"))  # fmt: skip
    error["properties"]["code"]["enum"] = [code]
    error["properties"]["request_id"]["pattern"] = REQUEST_ID
    if code == Code.VALIDATION_FAILED:
        error["required"].append("details")
    elif code != Code.INVALID_INPUT:
        del error["properties"]["details"]
    if code == Code.INSUFFICIENT_INVENTORY:
        response["required"].append("data")
    else:
        del response["properties"]["data"]
    response["properties"]["error"] = error
    return response | {"description": _when()[code]}


# ---------------------------------------------------------------- components

HEADER_OF = {Code.UNAUTHORIZED: "WWW-Authenticate", Code.METHOD_NOT_ALLOWED: "Allow"}
HEADERS: Mapping[str, Schema] = {
    "X-Request-Id": {
        "description": "The id of the call, a ULID, or a UUID if the edge is out of memory. Quote it when you ask for "
        "support. A refusal has it in `error.request_id`, too.",
        "required": True,
        "schema": {"type": "string", "pattern": REQUEST_ID},
        "example": examples.REQUEST_ID,
    },
    "Retry-After": {
        "description": "After how many seconds to send the call again. Present if the error passes by itself.",
        "schema": {"type": "integer", "minimum": 1},
        "example": 1,
    },
    "Idempotency-Replayed": {
        "description": "`true` if this is the response to an earlier request with the same idempotency key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "WWW-Authenticate": {"required": True, "schema": {"type": "string", "enum": ["Bearer"]}},
    "Allow": {
        "description": "The methods of the path.",
        "required": True,
        "schema": {"type": "string"},
        "example": "GET, POST",
    },
}
IDEMPOTENCY_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A new one for each new request, such as a UUID: 1 to 255 visible ASCII characters, bare or in "
    "double quotes. A request that is sent twice with it is carried out once.",
    "required": False,
    "schema": {"type": "string", "pattern": IDEMPOTENCY_KEY},
    "example": examples.IDEMPOTENCY_KEY,
}


def _components(image: Image, operations: Sequence[_Operation]) -> Schema:
    shared = {_name_of_response(codes): _refusal(codes)
              for operation in operations for codes in operation.codes().values()
              if codes[0] != Code.VALIDATION_FAILED}  # fmt: skip
    # No operation is refused with it. It is here so that the document has the whole table of errors.
    shared[_camel(Code.METHOD_NOT_ALLOWED)] = _refusal([Code.METHOD_NOT_ALLOWED])
    bodies = {each.method.request.name: each.body_schema() for each in operations if each.has_body}
    responses = {each.name: response_schema(image, each) for each in _printed(image, operations)}
    responses["Error"]["properties"]["code"]["enum"] = list(Code)
    codes = {_camel(code): _refusal_schema(image, code) for code in Code}
    return {
        "securitySchemes": {"api_key": {"type": "http", "scheme": "bearer", "description": "`am_live_…`"}},
        "parameters": {"IdempotencyKey": IDEMPOTENCY_KEY_PARAMETER},
        "headers": dict(HEADERS),
        "responses": dict(sorted(shared.items())),
        "schemas": bodies | responses | codes,
    }


def _printed(image: Image, operations: Iterable[_Operation]) -> list[Any]:
    """Return the messages of all responses, with those inside them."""
    waiting = [*(each.method.response for each in operations), image.messages[".ordernumbers.v1.ErrorResponse"]]
    found = {}
    while waiting:
        message = waiting.pop(0)
        found[message.name] = message
        names = [field.proto.type_name for field in message.fields]
        waiting += [image.messages[name] for name in names if name.startswith(".ordernumbers.")]
    return list(found.values())
