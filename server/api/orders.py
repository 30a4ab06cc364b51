"""Orders: protobuf to domain. What every call needs is done before (rpc/calls.py)."""

import json
from hashlib import sha256
from typing import NamedTuple

from uuid_utils import uuid7

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from server.batching import Answer, Batcher
from server.rules.values import Idempotency, Order
from server.store.reads import Principal


class Call(NamedTuple):
    """What is known of a call beside its request. `timeout_seconds` is how long its answer still matters."""

    request_id: str
    principal: Principal
    method: str
    scope: str
    idempotency_key: str | None
    timeout_seconds: float


class PhoneNumberService:
    """ordernumbers.v1.PhoneNumberService: a method an RPC, by its name."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def is_full(self, method: str) -> bool:
        """Whether a call of the method would be refused at once, since orders are queued and their queue is full."""
        return method == "OrderNumbers" and self._batcher.is_full

    async def OrderNumbers(self, request: OrderNumbersRequest, call: Call) -> Answer:  # noqa: N802
        """Assign the named numbers, all or none. Raises Refusal."""
        return await self._batcher.place(_order(request, call), call.timeout_seconds)


def _order(request: OrderNumbersRequest, call: Call) -> Order:
    """The order with its ids, made once and now: however often it is tried, it is the same order."""
    asked = {
        "inbound_url": request.inbound_url if request.HasField("inbound_url") else None,
        "status_url": request.status_url if request.HasField("status_url") else None,
        "label": request.label if request.HasField("label") else None,
        "campaign_id": request.campaign_id.lower() if request.HasField("campaign_id") else None,
    }
    numbers = tuple(request.numbers)
    key = call.idempotency_key
    return Order(
        id=str(uuid7()),
        organization_id=call.principal.organization_id,
        api_key_id=call.principal.api_key_id,
        scope=call.scope,
        request_id=call.request_id,
        numbers=numbers,
        assignment_ids=tuple(str(uuid7()) for _ in numbers),
        idempotency=None if key is None else Idempotency(key, _fingerprint(call.method, numbers=numbers, **asked)),
        **asked,
    )


def _fingerprint(method: str, **asked: object) -> bytes:
    """Digest of a method and what it is asked for; what is not said counts for nothing, so that a field which a later
    version adds changes none that is remembered."""
    said = {field: value for field, value in asked.items() if value is not None}
    return sha256(json.dumps([method, said], sort_keys=True).encode()).digest()
