"""A client for OrderNumbers: sync and async, typed, and it sends a call again safely.

- `client`: `Client` and `AsyncClient`, which have all calls. Generated.
- `models`: what the calls return. Generated.
- `errors`: what the calls raise.
- `transport`: how both clients send a call. `attempts`: when a call is sent again.
- `call`: one call, before it is sent.
"""

from ordernumbers_client.client import AsyncClient, Client
from ordernumbers_client.errors import (
    Forbidden,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InsufficientCredit,
    InsufficientInventory,
    Internal,
    InvalidInput,
    LimitExceeded,
    NoResponse,
    NotFound,
    OrderNumbersError,
    RateLimited,
    Refused,
    Timeout,
    Unauthorized,
    Unavailable,
    UnexpectedResponse,
    ValidationFailed,
)

__all__ = [
    "AsyncClient",
    "Client",
    "Forbidden",
    "IdempotencyInProgress",
    "IdempotencyKeyReused",
    "InsufficientCredit",
    "InsufficientInventory",
    "Internal",
    "InvalidInput",
    "LimitExceeded",
    "NoResponse",
    "NotFound",
    "OrderNumbersError",
    "RateLimited",
    "Refused",
    "Timeout",
    "Unauthorized",
    "Unavailable",
    "UnexpectedResponse",
    "ValidationFailed",
]
