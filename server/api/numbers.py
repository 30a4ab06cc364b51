"""Numbers that an organization has: from protobuf to the domain."""

from typing import Any

from ordernumbers.v1.phone_numbers_pb2 import (
    AttachCampaignRequest,
    BulkReleaseNumbersRequest,
    DetachCampaignRequest,
    GetNumberRequest,
    ListNumbersRequest,
    ReleaseNumberRequest,
    UpdateNumberRequest,
)
from server.admission import Response
from server.api.call import Call
from server.api.requests import present, write
from server.reading import Reads
from server.rules.values import Release, Route
from server.store.queries import Page
from server.writing import Writer

LIMIT_DEFAULT = 20


class Numbers:
    """The RPCs that list, route and release numbers, by name."""

    def __init__(self, writer: Writer, reads: Reads, rest_ms: int) -> None:
        self._writer = writer
        self._reads = reads
        self._rest_ms = rest_ms

    async def ListNumbers(self, request: ListNumbersRequest, call: Call) -> Response:  # noqa: N802
        """Return a page of the numbers, newest first. Raises Refusal."""
        limit = request.limit or LIMIT_DEFAULT
        page = Page(limit, request.cursor, request.number_type, request.campaign_id, request.search)
        return await self._reads.list_numbers(call.caller, page, call.timeout_seconds)

    async def GetNumber(self, request: GetNumberRequest, call: Call) -> Response:  # noqa: N802
        """Return one number. Raises Refusal."""
        return await self._reads.number(call.caller, request.id, call.timeout_seconds)

    async def UpdateNumber(self, request: UpdateNumberRequest, call: Call) -> Response:  # noqa: N802
        """Change the fields that are present. An empty text removes a value. Raises Refusal."""
        changes = present(request)
        del changes["id"]
        return await self._route(call, request.id, {name: value or None for name, value in changes.items()})

    async def AttachCampaign(self, request: AttachCampaignRequest, call: Call) -> Response:  # noqa: N802
        """Put a number into a campaign. Raises Refusal."""
        return await self._route(call, request.id, {"campaign_id": request.campaign_id})

    async def DetachCampaign(self, request: DetachCampaignRequest, call: Call) -> Response:  # noqa: N802
        """Take a number out of its campaign. Raises Refusal."""
        return await self._route(call, request.id, {"campaign_id": None})

    async def ReleaseNumber(self, request: ReleaseNumberRequest, call: Call) -> Response:  # noqa: N802
        """Give one number back. Raises Refusal."""
        return await self._release(call, [request.id], is_bulk=False)

    async def BulkReleaseNumbers(self, request: BulkReleaseNumbersRequest, call: Call) -> Response:  # noqa: N802
        """Give numbers back, and tell what became of each. Raises Refusal."""
        return await self._release(call, request.ids, is_bulk=True)

    async def _route(self, call: Call, id_: str, changes: dict[str, Any]) -> Response:
        if changes.get("campaign_id"):
            changes["campaign_id"] = changes["campaign_id"].lower()
        # The removal of a value is part of the request, so it is written into the fingerprint.
        named = {"id": id_.lower(), **{name: value or "" for name, value in changes.items()}}
        return await self._writer.carry_out(write(call, Route(id_.lower(), changes), named), call.timeout_seconds)

    async def _release(self, call: Call, ids: Any, *, is_bulk: bool) -> Response:
        distinct = tuple(dict.fromkeys(id_.lower() for id_ in ids))
        action = Release(distinct, self._rest_ms, is_bulk)
        return await self._writer.carry_out(write(call, action, {"ids": distinct}), call.timeout_seconds)
