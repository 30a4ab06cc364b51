"""What a method knows about its call besides the request."""

from hashlib import sha256
from json import dumps
from typing import Any, NamedTuple

from server.rules.values import Idempotency
from server.store.queries import Caller
from server.store.reads import Principal


class Call(NamedTuple):
    """A call that has passed the checks that all calls need. Its response is useless after `timeout_seconds`."""

    request_id: str
    principal: Principal
    method: str
    scope: str
    idempotency_key: str | None
    timeout_seconds: float

    @property
    def caller(self) -> Caller:
        return Caller(self.principal.organization_id, self.principal.api_key_id, self.scope)

    def idempotency(self, request: dict[str, Any]) -> Idempotency | None:
        """The call's idempotency key, with the digest of its method and its request. None if it has no key."""
        if self.idempotency_key is None:
            return None
        # Without absent fields: a field that a later version adds changes no fingerprint that is stored already.
        present = {name: value for name, value in request.items() if value is not None}
        fingerprint = sha256(dumps([self.method, present], sort_keys=True).encode()).digest()
        name = self.method.rpartition(".")[2]
        return Idempotency(self.idempotency_key, fingerprint, None if name == "OrderNumbers" else name)
