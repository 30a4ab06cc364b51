"""Orders: from protobuf to the domain. rpc/calls.py has already done what every call needs."""

import json
from hashlib import sha256

from uuid_utils import uuid7

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from server.api.call import Call
from server.batching import Batcher, Response
from server.rules.values import Idempotency, Order, Routing


class PhoneNumberService:
    """ordernumbers.v1.PhoneNumberService: one method per RPC, with the RPC's name."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def is_full(self, method: str) -> bool:
        """Whether a call of the method would be refused at once, because the queue of orders is full."""
        return method == "OrderNumbers" and self._batcher.is_full

    async def OrderNumbers(self, request: OrderNumbersRequest, call: Call) -> Response:  # noqa: N802
        """Assign the named numbers, all or none. Raises Refusal."""
        return await self._batcher.place(_order(request, call), call.timeout_seconds)


def _order(request: OrderNumbersRequest, call: Call) -> Order:
    numbers, routing = tuple(request.numbers), _routing(request)
    key = call.idempotency_key
    # The ids are made once, here. However often a transaction with it is tried, it is the same order.
    return Order(
        id=str(uuid7()),
        organization_id=call.principal.organization_id,
        api_key_id=call.principal.api_key_id,
        scope=call.scope,
        request_id=call.request_id,
        numbers=numbers,
        assignment_ids=tuple(str(uuid7()) for _ in numbers),
        routing=routing,
        idempotency=None if key is None else Idempotency(key, _fingerprint(call.method, numbers, routing)),
    )


def _routing(request: OrderNumbersRequest) -> Routing:
    present = {field.name: value for field, value in request.ListFields()}
    routing = Routing(*map(present.get, Routing._fields))
    # A UUID may be sent in upper case. The database returns it in lower case, and texts are compared.
    return routing._replace(campaign_id=routing.campaign_id.lower()) if routing.campaign_id else routing


def _fingerprint(method: str, numbers: tuple[str, ...], routing: Routing) -> bytes:
    """The digest of a method and its request."""
    # Without absent fields: a field that a later version adds changes no fingerprint that is stored already.
    present = {name: value for name, value in routing._asdict().items() if value is not None}
    return sha256(json.dumps([method, {"numbers": numbers, **present}], sort_keys=True).encode()).digest()
