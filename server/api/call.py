"""What a method knows about its call besides the request."""

from typing import NamedTuple

from server.store.reads import Principal


class Call(NamedTuple):
    """A call that has passed the checks that all calls need. Its response is useless after `timeout_seconds`."""

    request_id: str
    principal: Principal
    method: str
    scope: str
    idempotency_key: str | None
    timeout_seconds: float
