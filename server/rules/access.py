"""The rules that every write obeys, whatever it does: its key, its idempotency key, its campaign."""

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from server.errors import Code, Refusal
from server.rules.values import Id, Idempotency, KeyGrant, Replayed, State

SENDING_IDENTITIES = frozenset({"VERIFIED", "VETTED_VERIFIED"})


class Keyed(Protocol):
    """A write: for which organization, with which keys."""

    @property
    def organization_id(self) -> Id: ...
    @property
    def api_key_id(self) -> Id: ...
    @property
    def scope(self) -> str: ...
    @property
    def idempotency(self) -> Idempotency | None: ...


def is_valid(key: KeyGrant, now: datetime) -> bool:
    """Whether the key is neither revoked nor expired."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)


def known_result(write: Keyed, state: State) -> Refusal | Replayed | None:
    """What the keys of a write already decide. None if it must be carried out."""
    return _key_refusal(write, state) or _replay(write, state)


def scoped_key(write: Keyed) -> tuple[Id, str] | None:
    """The idempotency key with its organization. Two organizations may use the same key."""
    return (write.organization_id, write.idempotency.key) if write.idempotency else None


def campaign_refusal(organization_id: Id, campaign_id: Id | None, state: State) -> Refusal | None:
    """Why a number of the organization may not join the campaign. None if it may, or if there is no campaign."""
    if campaign_id is None:
        return None
    campaign = state.campaigns.get((organization_id, campaign_id))
    if campaign is None:
        return Refusal(Code.NOT_FOUND)
    if campaign.status != "ACTIVE":
        return Refusal(Code.VALIDATION_FAILED, details={"campaign_id": "must be ACTIVE"})
    if campaign.identity_status not in SENDING_IDENTITIES:
        return Refusal(Code.VALIDATION_FAILED, details={"campaign_id": "brand must be VERIFIED or VETTED_VERIFIED"})
    return None


def scope_refusal(scope: str, scopes: Iterable[str]) -> Refusal | None:
    """FORBIDDEN if a valid key lacks the scope."""
    return None if scope in scopes else Refusal(Code.FORBIDDEN)


def _key_refusal(write: Keyed, state: State) -> Refusal | None:
    key = state.keys.get(write.api_key_id)
    if key is None or not is_valid(key, state.now):
        return Refusal(Code.UNAUTHORIZED)
    return scope_refusal(write.scope, key.scopes)


def _replay(write: Keyed, state: State) -> Replayed | Refusal | None:
    key = scoped_key(write)
    stored = state.stored_responses.get(key) if key else None
    if write.idempotency is None or stored is None:
        return None
    if stored.fingerprint != write.idempotency.fingerprint:
        return Refusal(Code.IDEMPOTENCY_KEY_REUSED)
    return Replayed(stored.response)
