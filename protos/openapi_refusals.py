"""The refusals in openapi.json: which ones each call has, their schemas, and their examples.

server/errors.py has the table of their codes, and docs/errors.md tells when each happens and what to do next.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from protos import openapi_examples as examples
from protos.image import Image, Method
from protos.json_schema import Schema, response_schema
from server.errors import ERRORS, Code

ERRORS_PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
SCHEMAS = "#/components/schemas/"
REQUEST_ID = "^([0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$"
HEADER_OF = {Code.UNAUTHORIZED: "WWW-Authenticate", Code.METHOD_NOT_ALLOWED: "Allow"}

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


def codes_of(method: Method, *, has_path_fields: bool, is_write: bool) -> Mapping[int, Sequence[Code]]:
    """Return the codes with which a call may be refused, by HTTP status."""
    codes = {*EVERY_CALL, *SOME_CALLS.get(method.name, ()), *(EVERY_WRITE if is_write else ())}
    codes |= {Code.NOT_FOUND} if has_path_fields else set()
    found: dict[int, list[Code]] = {}
    for code in sorted(codes, key=list(Code).index):
        found.setdefault(ERRORS[code].http_status, []).append(code)
    if has_path_fields:
        found[400].append(Code.VALIDATION_FAILED)
    return dict(sorted(found.items()))


def name_of(codes: Iterable[Code]) -> str:
    """Return the name of the response with one of these codes. With one code it is the name of its schema, too."""
    return "Or".join(code.title().replace("_", "") for code in codes)


def response_with(codes: Sequence[Code], details: Mapping[str, str] | None = None) -> Schema:
    """Return the response with one of these codes. `details` are those of the example with VALIDATION_FAILED."""
    refs = [{"$ref": SCHEMAS + name_of([code])} for code in codes]
    headers = ["Retry-After"] if any(ERRORS[code].retry_seconds for code in codes) else []
    headers += [HEADER_OF[code] for code in codes if code in HEADER_OF]
    shown = {code: {"value": _example(code, details)} for code in codes}
    description = "\n\n".join(_when()[code] for code in codes)
    return response(description, headers, refs[0] if len(refs) == 1 else {"oneOf": refs}, {"examples": shown})


def response(description: str, headers: Iterable[str], schema: Schema, example: Schema) -> Schema:
    """Return a response with a JSON body, the header X-Request-Id and these headers."""
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *headers)},
        "content": {"application/json": {"schema": schema, **example}},
    }


def schema_of(image: Image, code: Code) -> Schema:
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


@cache
def _when() -> Mapping[str, str]:
    """Return what docs/errors.md tells of each code."""
    row = re.compile(r"\| \d+ \| `\w+` \| `(\w+)` \| (.*) \| (.*) \|")
    return {match[1]: f"`{match[1]}`: {match[2]} {match[3]}" for match in row.finditer(ERRORS_PAGE.read_text())}


def _example(code: Code, details: Mapping[str, str] | None) -> Schema:
    more = dict(examples.REFUSALS.get(code, {}))
    error = {"code": code, "message": more.pop("message", ERRORS[code].message), "request_id": examples.REQUEST_ID}
    if code == Code.VALIDATION_FAILED and details:
        more["details"] = details
    if "details" in more:
        error["details"] = more.pop("details")
    return {"success": False, "error": error} | more
