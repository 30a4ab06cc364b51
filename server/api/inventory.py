"""Numbers that can be ordered: from protobuf to the domain."""

from ordernumbers.v1.inventory_pb2 import (
    GetHoldRequest,
    HoldNumbersRequest,
    ReleaseHoldRequest,
    SearchNumbersRequest,
)
from server.admission import Response
from server.api.call import Call
from server.api.requests import criteria, write
from server.reading import Reads
from server.rules.values import EndHold, Hold
from server.writing import Writer

QUANTITY_DEFAULT = 10
MINUTES_DEFAULT = 10


class Inventory:
    """The RPCs that search for numbers and hold them, by name."""

    def __init__(self, writer: Writer, reads: Reads, held_max: int) -> None:
        self._writer = writer
        self._reads = reads
        self._held_max = held_max

    async def SearchNumbers(self, request: SearchNumbersRequest, call: Call) -> Response:  # noqa: N802
        """Find numbers that could be ordered now. Raises Refusal."""
        quantity = request.quantity or QUANTITY_DEFAULT
        return await self._reads.search(call.caller, criteria(request), quantity, call.timeout_seconds)

    async def HoldNumbers(self, request: HoldNumbersRequest, call: Call) -> Response:  # noqa: N802
        """Keep the named numbers for a while, all or none. Raises Refusal."""
        numbers, minutes = tuple(request.numbers), request.minutes or MINUTES_DEFAULT
        action = Hold(numbers, minutes, self._held_max)
        named = {"numbers": numbers, "minutes": minutes}
        return await self._writer.carry_out(write(call, action, named), call.timeout_seconds)

    async def GetHold(self, request: GetHoldRequest, call: Call) -> Response:  # noqa: N802
        """Return a hold that has not ended. Raises Refusal."""
        return await self._reads.hold(call.caller, request.id, call.timeout_seconds)

    async def ReleaseHold(self, request: ReleaseHoldRequest, call: Call) -> Response:  # noqa: N802
        """End a hold. Raises Refusal."""
        hold_id = request.id.lower()
        return await self._writer.carry_out(write(call, EndHold(hold_id), {"id": hold_id}), call.timeout_seconds)
