"""What several requests have in common, from protobuf to the domain."""

from typing import Any

from google.protobuf.message import Message
from uuid_utils import uuid7

from server.api.call import Call
from server.rules.values import Action, Criteria, Routing, Write


def routing(request: Message) -> Routing:
    """The routing fields of a request. None where a field is absent."""
    fields = present(request)
    found = Routing(*map(fields.get, Routing._fields))
    return found._replace(campaign_id=found.campaign_id.lower()) if found.campaign_id else found


def criteria(request: Message) -> Criteria:
    """The search criteria of a request. None where a field is absent."""
    return Criteria(*map(present(request).get, Criteria._fields))


def present(request: Message) -> dict[str, Any]:
    """The fields of a request that are set, by name."""
    return {field.name: value for field, value in request.ListFields()}


def new_id() -> str:
    """A new UUIDv7. Ids are made once, here. However often a transaction is tried, it is the same write."""
    return str(uuid7())


def write(call: Call, action: Action, request: dict[str, Any], id_: str | None = None) -> Write:
    """The write of a call. `request` is what its idempotency key stands for."""
    return Write(
        id=id_ or new_id(),
        organization_id=call.principal.organization_id,
        api_key_id=call.principal.api_key_id,
        scope=call.scope,
        request_id=call.request_id,
        action=action,
        idempotency=call.idempotency(request),
    )
