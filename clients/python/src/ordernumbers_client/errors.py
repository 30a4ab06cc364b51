"""What a call raises. docs/errors.md of the service has each code, and what to do next."""

from collections.abc import Mapping
from typing import Any

from ordernumbers_client.call import decode
from ordernumbers_client.models import InventoryShortage


class OrderNumbersError(Exception):
    """A call has no result."""

    request_id: str | None = None
    """The id of the last attempt. Quote it when you ask for support."""
    idempotency_key: str | None = None
    """The idempotency key of all attempts. None for a call that changes nothing."""
    is_outcome_unknown: bool = False
    """Whether the call may have been carried out. To find out, send it again with `idempotency_key`."""


class NoResponse(OrderNumbersError):
    """No attempt got a response before the deadline, or none can get one. `__cause__` is the last one's error."""


class UnexpectedResponse(OrderNumbersError):
    """The response is not one of the service's, for example a proxy's own page."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.retry_after_seconds: int | None = None


class Refused(OrderNumbersError):
    """The service has refused the call. The codes without a class of their own mean an error in the client program."""

    def __init__(self, status: int, response: Mapping[str, Any], retry_after_seconds: int | None) -> None:
        """`response` is the JSON of the refusal. Raises KeyError or TypeError if it is none."""
        error = response["error"]
        self.status = status
        self.code: str = error["code"]
        """The code, such as `NOT_FOUND`. A later version of the service may add some."""
        self.message: str = error["message"]
        """One sentence for people. Its wording may change."""
        self.details: dict[str, str] = error.get("details") or {}
        """Each field at fault with the rule that it breaks: `{"numbers[1]": "must be E.164"}`."""
        self.retry_after_seconds = retry_after_seconds
        self.request_id = error["request_id"]
        details = f" {self.details}" if self.details else ""
        super().__init__(f"{self.code}: {self.message}{details} (request {self.request_id})")


class InvalidInput(Refused):
    """The request is not what the service describes."""


class Unauthorized(Refused):
    """The API key is missing, malformed, unknown, expired or revoked."""


class InsufficientCredit(Refused):
    """The numbers cost more than the balance."""


class Forbidden(Refused):
    """The API key lacks the scope of the call."""


class NotFound(Refused):
    """What the call names does not exist, or belongs to another organization."""


class InsufficientInventory(Refused):
    """Some numbers are not available. Nothing was ordered or held."""

    def __init__(self, status: int, response: Mapping[str, Any], retry_after_seconds: int | None) -> None:
        super().__init__(status, response, retry_after_seconds)
        shortage = decode(InventoryShortage, response["data"])
        self.unavailable = shortage.unavailable
        """All requested numbers that are not available, in the order of the request. Empty for a bulk order."""
        self.available_count = shortage.available_count
        """How many of the others there are. For a bulk order, how many numbers were found."""


class LimitExceeded(Refused):
    """The organization would hold too many numbers."""


class IdempotencyInProgress(Refused):
    """A request with this idempotency key is still under way."""


class IdempotencyKeyReused(Refused):
    """Another request has used this idempotency key."""


class ValidationFailed(Refused):
    """Fields break their rules, or the campaign may not be used. `details` has all of them."""


class RateLimited(Refused):
    """Too many calls of the API key, or of the address."""


class Internal(Refused):
    """An error of the service. Report the `request_id`."""


class Unavailable(Refused):
    """The service could not carry out this attempt."""


class Timeout(Refused):
    """The service did not carry out this attempt in time, or it does not know whether it did."""


CLASSES: Mapping[str, type[Refused]] = {
    "INVALID_INPUT": InvalidInput,
    "UNAUTHORIZED": Unauthorized,
    "INSUFFICIENT_CREDIT": InsufficientCredit,
    "FORBIDDEN": Forbidden,
    "NOT_FOUND": NotFound,
    "INSUFFICIENT_INVENTORY": InsufficientInventory,
    "LIMIT_EXCEEDED": LimitExceeded,
    "IDEMPOTENCY_IN_PROGRESS": IdempotencyInProgress,
    "IDEMPOTENCY_KEY_REUSED": IdempotencyKeyReused,
    "VALIDATION_FAILED": ValidationFailed,
    "RATE_LIMITED": RateLimited,
    "INTERNAL": Internal,
    "UNAVAILABLE": Unavailable,
    "TIMEOUT": Timeout,
}


def refusal_of(status: int, response: Any, retry_after_seconds: int | None) -> Refused:
    """Return the error for the JSON of a refusal. Raises KeyError or TypeError if it is none."""
    error = response["error"]
    if not all(isinstance(error[name], str) for name in ("code", "message", "request_id")):
        raise TypeError("not a refusal")
    return CLASSES.get(error["code"], Refused)(status, response, retry_after_seconds)
