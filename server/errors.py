"""All refusals, and the one table of their codes, statuses and messages on both transports (docs/errors.md).

It imports neither gRPC nor SQL nor the protos, so that the rules can use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Code(StrEnum):
    """The value of `error.code`, by which programs decide."""

    INVALID_INPUT = "INVALID_INPUT"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    VALIDATION_FAILED = "VALIDATION_FAILED"
    NOT_FOUND = "NOT_FOUND"
    INSUFFICIENT_INVENTORY = "INSUFFICIENT_INVENTORY"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    INSUFFICIENT_CREDIT = "INSUFFICIENT_CREDIT"
    IDEMPOTENCY_IN_PROGRESS = "IDEMPOTENCY_IN_PROGRESS"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    RATE_LIMITED = "RATE_LIMITED"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    UPGRADE_REQUIRED = "UPGRADE_REQUIRED"
    HEADERS_TOO_LARGE = "HEADERS_TOO_LARGE"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    TIMEOUT = "TIMEOUT"


class ErrorSpec(NamedTuple):
    """What a code is on the wire: the name of its gRPC status, its HTTP status, and its message."""

    grpc_status: str
    http_status: int
    message: str
    retry_seconds: int | None = None
    """The `Retry-After` header, in seconds. None: no such header."""


ERRORS: Mapping[Code, ErrorSpec] = {
    Code.INVALID_INPUT: ErrorSpec("INVALID_ARGUMENT", 400, "malformed request"),
    Code.UNAUTHORIZED: ErrorSpec("UNAUTHENTICATED", 401, "authentication failed"),
    Code.FORBIDDEN: ErrorSpec("PERMISSION_DENIED", 403, "missing required scope"),
    Code.VALIDATION_FAILED: ErrorSpec("INVALID_ARGUMENT", 422, "validation failed"),
    Code.NOT_FOUND: ErrorSpec("NOT_FOUND", 404, "not found"),
    Code.INSUFFICIENT_INVENTORY: ErrorSpec("ABORTED", 409, "insufficient inventory"),
    Code.LIMIT_EXCEEDED: ErrorSpec("FAILED_PRECONDITION", 409, "limit exceeded"),
    Code.INSUFFICIENT_CREDIT: ErrorSpec("FAILED_PRECONDITION", 402, "insufficient credit"),
    Code.IDEMPOTENCY_IN_PROGRESS: ErrorSpec("ABORTED", 409, "a request with this idempotency key is under way", 1),
    Code.IDEMPOTENCY_KEY_REUSED: ErrorSpec("FAILED_PRECONDITION", 422, "idempotency key was used for another request"),
    Code.RATE_LIMITED: ErrorSpec("RESOURCE_EXHAUSTED", 429, "rate limited", 1),
    Code.METHOD_NOT_ALLOWED: ErrorSpec("INVALID_ARGUMENT", 405, "method not allowed"),
    Code.REQUEST_TIMEOUT: ErrorSpec("DEADLINE_EXCEEDED", 408, "request not received in time"),
    Code.PAYLOAD_TOO_LARGE: ErrorSpec("INVALID_ARGUMENT", 413, "request body too large"),
    Code.UNSUPPORTED_MEDIA_TYPE: ErrorSpec("INVALID_ARGUMENT", 415, "content-type must be application/json"),
    Code.UPGRADE_REQUIRED: ErrorSpec("UNIMPLEMENTED", 426, "gRPC needs HTTP/2, REST needs HTTP/1.1"),
    Code.HEADERS_TOO_LARGE: ErrorSpec("INVALID_ARGUMENT", 431, "request headers too large"),
    Code.INTERNAL: ErrorSpec("INTERNAL", 500, "internal error"),
    Code.UNAVAILABLE: ErrorSpec("UNAVAILABLE", 503, "service unavailable", 1),
    Code.TIMEOUT: ErrorSpec("DEADLINE_EXCEEDED", 504, "request timed out"),
}
"""LIMIT_EXCEEDED is not RESOURCE_EXHAUSTED. Many gRPC clients send a call with that status again by themselves, which
does not help: the caller must first give something back."""

AT_THE_EDGE: Sequence[Code] = (
    Code.INVALID_INPUT,
    Code.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED,
    Code.REQUEST_TIMEOUT,
    Code.PAYLOAD_TOO_LARGE,
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.UPGRADE_REQUIRED,
    Code.RATE_LIMITED,
    Code.HEADERS_TOO_LARGE,
    Code.INTERNAL,
    Code.UNAVAILABLE,
    Code.TIMEOUT,
)
"""What the edge sends by itself. It finds them by HTTP status, so no two share one. `make gen` writes errors.lua."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why an order is refused: how many of its numbers are available, and all that are not, in the order's order."""

    available_count: int
    unavailable: Sequence[str]


class Refusal(Exception):
    """A call that was refused and changed nothing. Only a call with TIMEOUT may have been carried out.

    `details` maps fields to the rules that they break. Everything in it is sent to the caller, so nothing is internal.
    `http_status` is the one of the table, unless the refusal has another.
    """

    def __init__(
        self,
        code: Code,
        *,
        message: str | None = None,
        details: Mapping[str, str] | None = None,
        shortage: Shortage | None = None,
        http_status: int | None = None,
    ) -> None:
        self.code = code
        self.spec = ERRORS[code]
        self.message = message or self.spec.message
        self.details = details
        self.shortage = shortage
        self.http_status = http_status or self.spec.http_status
        super().__init__(self.message)


class OperatorError(Exception):
    """What an operator asked for cannot be done: a wrong setting, argument or file, a port in use.

    The command prints it without a traceback.
    """
