"""What the calls return. Generated from openapi.json by clients/generate.py. Do not edit it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

ErrorCode = Literal[
    "INVALID_INPUT",
    "UNAUTHORIZED",
    "FORBIDDEN",
    "VALIDATION_FAILED",
    "NOT_FOUND",
    "INSUFFICIENT_INVENTORY",
    "LIMIT_EXCEEDED",
    "INSUFFICIENT_CREDIT",
    "IDEMPOTENCY_IN_PROGRESS",
    "IDEMPOTENCY_KEY_REUSED",
    "RATE_LIMITED",
    "METHOD_NOT_ALLOWED",
    "REQUEST_TIMEOUT",
    "PAYLOAD_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
    "UPGRADE_REQUIRED",
    "HEADERS_TOO_LARGE",
    "INTERNAL",
    "UNAVAILABLE",
    "TIMEOUT",
]
"""The code of a refusal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AvailableNumber:
    """A number that can be ordered."""

    number: str
    """The number, in E.164 format."""
    number_type: str
    """"local", "toll_free" or "short_code"."""
    sms_enabled: bool
    """Whether the number can send and receive SMS."""
    mms_enabled: bool
    """Whether the number can send and receive MMS."""
    price: str
    """What an order of the number costs, in the currency of the credit: a decimal such as "1.50"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhoneNumber:
    """A number assigned to an organization."""

    id: str | None = None
    """The id of the assignment, a UUID. When the number is assigned again later, that assignment has another id.
    Absent in the response to an order with `validate_only`, as both times are.
    """
    number: str
    """The number, in E.164 format."""
    number_type: str
    """"local", "toll_free" or "short_code"."""
    inbound_url: str | None = None
    """The URL that receives inbound messages and calls. Absent when there is none."""
    status_url: str | None = None
    """The URL that receives delivery reports. Absent when there is none."""
    label: str | None = None
    """The name that the caller gave to the number. Absent when there is none."""
    campaign_id: str | None = None
    """The UUID of the number's messaging campaign. Absent when there is none."""
    sms_enabled: bool
    """Whether the number can send and receive SMS."""
    mms_enabled: bool
    """Whether the number can send and receive MMS."""
    created_at: datetime | None = None
    """When the number was assigned, in whole seconds."""
    updated_at: datetime | None = None
    """When the settings of the number last changed, in whole seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderPreview:
    """What an order would cost."""

    total_price: str
    """The sum of the prices, a decimal such as "0.30"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderNumbersResponse:
    """All requested numbers. They now belong to the organization, except with `validate_only`."""

    data: list[PhoneNumber]
    """One entry per number, in the order of the request."""
    meta: OrderPreview | None = None
    """Present only with `validate_only`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderReference:
    """Which order it is."""

    order_id: str
    """The id of the order, a UUID. GetOrder takes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FindOrderResponse:
    """The numbers of an order, in the order of the request, as they were in its response."""

    data: list[PhoneNumber]
    """One entry per number. It may have other settings now, or may have been given back."""
    meta: OrderReference
    """Which order it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkOrder:
    """A bulk order, as it was when it was carried out."""

    order_id: str
    """The id of the order, a UUID."""
    status: str
    """Always "complete"."""
    quantity: int
    """How many numbers were ordered."""
    assigned_count: int
    """How many numbers were assigned: all of them."""
    pending_count: int
    """How many numbers are still to be assigned: none."""
    assigned_numbers: list[PhoneNumber]
    """The numbers that were assigned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GetOrderResponse:
    """The numbers of an order, in the order of the request, as they were in its response."""

    data: list[PhoneNumber]
    """One entry per number. It may have other settings now, or may have been given back."""
    meta: OrderReference
    """Which order it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """Numbers that are kept for the organization until a time."""

    id: str
    """The id of the hold, a UUID."""
    numbers: list[str]
    """The numbers that it keeps, in the order of the request. A number leaves its hold when it is ordered or held
    anew.
    """
    created_at: datetime
    """When the hold was made, in whole seconds."""
    expires_at: datetime
    """When the hold ends, in whole seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasedHold:
    """A hold that has ended."""

    status: str
    """Always "released"."""
    numbers: list[str]
    """The numbers that it kept until now, in the order of the request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageMeta:
    """Where a list goes on."""

    limit: int
    """The most numbers of a page."""
    next_cursor: str | None
    """The `cursor` of the next page, a string. Null on the last page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListNumbersResponse:
    """A page of the organization's numbers, newest first."""

    data: list[PhoneNumber]
    """The numbers. Empty if there are none."""
    meta: PageMeta
    """Where the list goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleasedNumber:
    """A number that was given back."""

    status: str
    """Always "released"."""
    available_at: datetime
    """When every organization can order the number again, in whole seconds. Until then only this organization can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseResult:
    """The distinct ids of the request, each in one list, in the order of the request."""

    released: list[str]
    """The numbers that were given back now."""
    already_released: list[str]
    """The numbers that this organization gave back before, and that are not available to others yet."""
    unknown: list[str]
    """All others. An id of another organization looks the same as one that does not exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InventoryShortage:
    """Why an order cannot be filled. Assigned, held, resting and unknown numbers look the same here."""

    available_count: int
    """How many of the requested numbers the caller could order now. For a bulk order: how many were found."""
    unavailable: list[str]
    """All requested numbers that are not available, in the order of the request. Empty for a bulk order."""
