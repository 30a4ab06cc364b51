"""The examples of openapi.json. `make run` can carry out each request that names no id: its demo has these numbers."""

from collections.abc import Mapping
from typing import Any

from server.errors import Code

REQUEST_ID = "01M8P2TB4N3NJBT4796MFR97QM"
IDEMPOTENCY_KEY = "a6f6b2c8-5c1e-4f0e-9a53-0b8a2f1f7d10"

_NUMBER, _OTHER, _TOLL_FREE = "+14155550142", "+14155550143", "+18005550142"
_HELD = ["+14155550144", "+14155550145"]  # not those of the order, so that both requests work one after the other
_ID, _OTHER_ID = "01a22c2d-2ba9-7490-b91f-339782bb342d", "01a22c2d-2ba9-7490-b91f-339782bb342e"
_ORDER_ID, _HOLD_ID = "01a22c2d-2ba8-76f9-9b18-6cfc80cc7b75", "01a22c2d-2b60-76f9-9b18-6cfc80cc7b75"
_CAMPAIGN_ID = "01a22c2d-1a61-7656-ba7c-24b736b6f108"
_CREATED, _LATER, _RESTED = "2026-11-30T11:18:07Z", "2026-11-30T11:23:07Z", "2026-12-30T11:18:07Z"
_URL = "https://hooks.example.com/inbound"


def _row(**settings: str) -> dict[str, Any]:
    """A row of the number that most examples are about."""
    capabilities = {"sms_enabled": True, "mms_enabled": True}
    row = {"id": _ID, "number": _NUMBER, "number_type": "local", **settings, **capabilities}
    return row | {"created_at": _CREATED, "updated_at": _CREATED}


_ROWS = [_row(label="front desk"), _row(label="front desk") | {"id": _OTHER_ID, "number": _OTHER}]
_HOLD = {"id": _HOLD_ID, "numbers": _HELD, "created_at": _CREATED, "expires_at": _LATER}
_FOUND = [
    {"number": number, "number_type": "local", "sms_enabled": True, "mms_enabled": True, "price": "1.00"}
    for number in (_NUMBER, _OTHER)
]
_BULK_ORDER = {
    "order_id": _ORDER_ID,
    "status": "complete",
    "quantity": 1,
    "assigned_count": 1,
    "pending_count": 0,
    "assigned_numbers": [
        _row(label="support") | {"number": _TOLL_FREE, "number_type": "toll_free", "mms_enabled": False}
    ],
}

REQUESTS: Mapping[str, dict[str, Any]] = {
    "SearchNumbers": {"area_code": "415", "quantity": 2},
    "OrderNumbers": {"numbers": [_NUMBER, _OTHER], "label": "front desk"},
    "BulkOrderNumbers": {"quantity": 1, "number_type": "toll_free", "label": "support"},
    "GetBulkOrder": {"id": _ORDER_ID},
    "GetOrder": {"id": _ORDER_ID},
    "FindOrder": {"idempotency_key": IDEMPOTENCY_KEY},
    "HoldNumbers": {"numbers": _HELD, "minutes": 5},
    "GetHold": {"id": _HOLD_ID},
    "ReleaseHold": {"id": _HOLD_ID},
    "ListNumbers": {"limit": 20, "number_type": "local", "search": "desk"},
    "GetNumber": {"id": _ID},
    "UpdateNumber": {"id": _ID, "inbound_url": _URL},
    "AttachCampaign": {"id": _ID, "campaign_id": _CAMPAIGN_ID},
    "DetachCampaign": {"id": _ID},
    "ReleaseNumber": {"id": _ID},
    "BulkReleaseNumbers": {"ids": [_ID, _OTHER_ID]},
}
"""By RPC, all fields of its request: those of the path, of the query and of the body."""

RESPONSES: Mapping[str, dict[str, Any]] = {
    "SearchNumbers": {"data": _FOUND},
    "OrderNumbers": {"data": _ROWS},
    "BulkOrderNumbers": {"data": _BULK_ORDER},
    "GetBulkOrder": {"data": _BULK_ORDER},
    "GetOrder": {"data": _ROWS, "meta": {"order_id": _ORDER_ID}},
    "FindOrder": {"data": _ROWS, "meta": {"order_id": _ORDER_ID}},
    "HoldNumbers": {"data": _HOLD},
    "GetHold": {"data": _HOLD},
    "ReleaseHold": {"data": {"status": "released", "numbers": _HELD}},
    "ListNumbers": {"data": _ROWS, "meta": {"limit": 20, "next_cursor": None}},
    "GetNumber": {"data": _row(label="front desk")},
    "UpdateNumber": {"data": _row(inbound_url=_URL, label="front desk")},
    "AttachCampaign": {"data": _row(label="front desk", campaign_id=_CAMPAIGN_ID)},
    "DetachCampaign": {"data": _row(label="front desk")},
    "ReleaseNumber": {"data": {"status": "released", "available_at": _RESTED}},
    "BulkReleaseNumbers": {"data": {"released": [_ID], "already_released": [_OTHER_ID], "unknown": []}},
}
"""By RPC, its response without `success`."""

REFUSALS: Mapping[Code, dict[str, Any]] = {
    Code.INVALID_INPUT: {"details": {"labl": "unknown parameter"}},
    Code.VALIDATION_FAILED: {"details": {"id": "must be a UUID"}},
    Code.INSUFFICIENT_INVENTORY: {
        "message": "insufficient inventory: requested 2, available 1",
        "data": {"available_count": 1, "unavailable": [_OTHER]},
    },
    Code.LIMIT_EXCEEDED: {"message": "limit exceeded: at most 1000 numbers can be held"},
}
"""What a refusal has beside the code and the message of its error: another message, `details` or `data`."""
