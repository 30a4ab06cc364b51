"""Orders: from protobuf to the domain. rpc/calls.py has already done what every call needs."""

import asyncio
from typing import Any

from ordernumbers.v1.orders_pb2 import (
    BulkOrderNumbersRequest,
    FindOrderRequest,
    GetBulkOrderRequest,
    GetOrderRequest,
    OrderNumbersRequest,
)
from server.admission import Respond, Response
from server.api.call import Call
from server.api.requests import criteria, new_id, routing, write
from server.batching import Batcher
from server.reading import Reads
from server.rules.values import Choose, Order
from server.writing import Writer


class Orders:
    """The RPCs that make orders and look them up, by name."""

    def __init__(self, batcher: Batcher, writer: Writer, reads: Reads) -> None:
        self._batcher = batcher
        self._writer = writer
        self._reads = reads

    async def OrderNumbers(self, request: OrderNumbersRequest, call: Call) -> Response:  # noqa: N802
        """Assign the named numbers, all or none. Raises Refusal."""
        order = _order(request, call)
        if request.validate_only:
            return await self._reads.preview(order._replace(idempotency=None), call.timeout_seconds)
        return await self._batcher.place(order, call.timeout_seconds)

    def begin_order(
        self, request: OrderNumbersRequest, call: Call, caller: "asyncio.Future[Any]", respond: Respond
    ) -> bool:
        """Begin an order. Returns False if it has an idempotency key or is only checked. Raises Refusal.

        What OrderNumbers would return or raise is passed to `respond`, together with all other orders of its batch.
        """
        if call.idempotency_key is not None or request.validate_only:
            return False
        deadline = asyncio.get_running_loop().time() + call.timeout_seconds
        self._batcher.begin(_order(request, call), deadline, caller, respond)
        return True

    async def BulkOrderNumbers(self, request: BulkOrderNumbersRequest, call: Call) -> Response:  # noqa: N802
        """Choose numbers and assign them, all or none. Raises Refusal."""
        wanted, settings = criteria(request), routing(request)
        named = {"quantity": request.quantity, **wanted._asdict(), **settings._asdict()}
        order_id = new_id()
        # After the order's id: that order of the ids is how the assignments of an order are found.
        action = Choose(request.quantity, wanted, tuple(new_id() for _ in range(request.quantity)), settings)
        return await self._writer.carry_out(write(call, action, named, order_id), call.timeout_seconds)

    async def GetOrder(self, request: GetOrderRequest, call: Call) -> Response:  # noqa: N802
        """Return an order as it was. Raises Refusal."""
        return await self._reads.order(call.caller, request.id, call.timeout_seconds)

    async def FindOrder(self, request: FindOrderRequest, call: Call) -> Response:  # noqa: N802
        """Return the order under an idempotency key as it was. Raises Refusal."""
        return await self._reads.order_under_key(call.caller, request.idempotency_key, call.timeout_seconds)

    async def GetBulkOrder(self, request: GetBulkOrderRequest, call: Call) -> Response:  # noqa: N802
        """Return a bulk order as it was. Raises Refusal."""
        return await self._reads.bulk_order(call.caller, request.id, call.timeout_seconds)


def _order(request: OrderNumbersRequest, call: Call) -> Order:
    numbers, settings = tuple(request.numbers), routing(request)
    # Most orders have no idempotency key, and need no digest of the request.
    idempotency = call.idempotency({"numbers": numbers, **settings._asdict()}) if call.idempotency_key else None
    return Order(
        id=new_id(),
        organization_id=call.principal.organization_id,
        api_key_id=call.principal.api_key_id,
        scope=call.scope,
        request_id=call.request_id,
        numbers=numbers,
        assignment_ids=tuple(new_id() for _ in numbers),
        routing=settings,
        idempotency=idempotency,
    )
