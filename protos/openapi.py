"""openapi.json: the REST API as OpenAPI 3.1, from the protos.

It has one operation per RPC with the option `google.api.http`. Its refusals are in openapi_refusals.py.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protos import openapi_examples as examples
from protos.image import Image, Method, file_comment
from protos.json_schema import (
    Schema,
    Undocumented,
    is_required,
    refuse_message_rules,
    request_schema,
    response_schema,
    rule_of,
    value_schema,
)
from protos.openapi_refusals import REQUEST_ID, SCHEMAS, codes_of, name_of, response, response_with, schema_of
from server.errors import ERRORS, Code

# As server/rpc/idempotency_key.py reads it.
IDEMPOTENCY_KEY = r'^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$'
IDEMPOTENCY_KEY_AT_FAULT = {"idempotency-key": "must be one of 1..255 visible ASCII characters"}


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
        if SCOPE not in method.options:
            raise Undocumented(f"{method.full_name}: it has no required_scope")
        refuse_message_rules(method.request)
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
            "summary": _in_words(self.method.name),
            "description": f"{self.method.comment}\n\nThe API key needs the scope `{scope}`.",
            "tags": [_tag(self.method)],
            "security": [{"api_key": [scope]}],
            **({"parameters": parameters} if parameters else {}),
            **({"requestBody": self._body()} if self.has_body else {}),
            "responses": {"200": self._success()} | dict(self._refusals()),
        }

    def body_schema(self) -> Schema:
        return request_schema(self.image, self.method.request, self.path_fields)

    def codes(self) -> Mapping[int, Sequence[Code]]:
        """The codes of its refusals, by HTTP status."""
        return codes_of(self.method, has_path_fields=bool(self.path_fields), is_write=self.is_write)

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
        headers = ["Idempotency-Replayed"] if self.is_write else []
        schema = {"$ref": f"{SCHEMAS}{self.method.response.name}"}
        example = {"success": True} | examples.RESPONSES[self.method.name]
        return response(self.method.response.comment, headers, schema, {"example": example})

    def _refusals(self) -> Iterable[tuple[str, Schema]]:
        for status, codes in self.codes().items():
            # The fields of each call are others.
            inline = status == ERRORS[Code.VALIDATION_FAILED].http_status
            ref = {"$ref": f"#/components/responses/{name_of(codes)}"}
            yield str(status), response_with(codes, self._fields_at_fault()) if inline else ref

    def _fields_at_fault(self) -> dict[str, str]:
        """An example of `details`: the first field that has a rule."""
        fields = (field for field in self.method.request.fields if field.name not in self.path_fields)
        faults = ({field.name: rule} for field in fields if (rule := rule_of(field)))
        return next(faults, IDEMPOTENCY_KEY_AT_FAULT)


def _in_words(method: str) -> str:
    """Return `Order numbers` for `OrderNumbers`: a short title for the reference page."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", method).capitalize()


def _example(value: Any) -> Schema:
    return {} if value is None else {"example": value}


# ---------------------------------------------------------------- components

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
    # No example. A page would send the same one with each call, which is refused.
    "schema": {"type": "string", "pattern": IDEMPOTENCY_KEY},
}


def _components(image: Image, operations: Sequence[_Operation]) -> Schema:
    shared = {name_of(codes): response_with(codes)
              for operation in operations for codes in operation.codes().values()
              if codes[0] != Code.VALIDATION_FAILED}  # fmt: skip
    # No operation is refused with it. It is here so that the document has the whole table of errors.
    shared[name_of([Code.METHOD_NOT_ALLOWED])] = response_with([Code.METHOD_NOT_ALLOWED])
    bodies = {each.method.request.name: each.body_schema() for each in operations if each.has_body}
    responses = {each.name: response_schema(image, each) for each in _printed(image, operations)}
    responses["Error"]["properties"]["code"]["enum"] = list(Code)
    codes = {name_of([code]): schema_of(image, code) for code in Code}
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
