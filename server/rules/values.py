"""The values that the rules speak of: orders, and what the database holds of all that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from server.errors import Refusal

Id = str
"""A UUID as canonical text: as the wire and the database's answers have it, and cheaper than an object."""


class Idempotency(NamedTuple):
    """The key under which an order is carried out once however often it is sent, and the digest of what it asks for."""

    key: str
    fingerprint: bytes


class Order(NamedTuple):
    """One order as asked, with the ids it will have if it is placed; one assignment id a number, in its order."""

    id: Id
    organization_id: Id
    api_key_id: Id
    scope: str
    request_id: str
    numbers: tuple[str, ...]
    assignment_ids: tuple[Id, ...]
    inbound_url: str | None = None
    status_url: str | None = None
    label: str | None = None
    campaign_id: Id | None = None
    idempotency: Idempotency | None = None


class Number(NamedTuple):
    """A number of the inventory as its row says: what it is, what it costs, and whose it is."""

    number_type: str
    sms_enabled: bool
    mms_enabled: bool
    price_micros: int
    assignment_id: Id | None
    held_by: Id | None
    free_at: datetime | None

    def is_available_to(self, organization_id: Id, now: datetime) -> bool:
        """Not assigned, and neither in quarantine nor held for somebody else."""
        if self.assignment_id is not None:
            return False
        return self.free_at is None or self.free_at <= now or self.held_by == organization_id


class Account(NamedTuple):
    """An organization's credit and the number of its newest ledger entry."""

    balance_micros: int
    entry_no: int


class Key(NamedTuple):
    """What a key may do, and until when."""

    scopes: Sequence[str]
    expires_at: datetime | None
    revoked_at: datetime | None

    def is_valid(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


class Campaign(NamedTuple):
    """A messaging campaign's status, and the identity status of the brand it is linked to, if any."""

    status: str
    identity_status: str | None


class StoredResponse(NamedTuple):
    """What was answered to the order that an idempotency key was used for, and the digest of what it asked for."""

    fingerprint: bytes
    answer: bytes


class State(NamedTuple):
    """What the database says of all that a batch of orders names. What is not in it does not exist."""

    now: datetime
    numbers: Mapping[str, Number] = MappingProxyType({})
    accounts: Mapping[Id, Account] = MappingProxyType({})
    keys: Mapping[Id, Key] = MappingProxyType({})
    campaigns: Mapping[tuple[Id, Id], Campaign] = MappingProxyType({})
    """By organization and campaign."""
    stored: Mapping[tuple[Id, str], StoredResponse] = MappingProxyType({})
    """By organization and idempotency key."""
    busy: frozenset[str] = frozenset()
    """Numbers and organizations whose rows somebody else has locked: nothing is known of them."""


class Placed(NamedTuple):
    """An order that is carried out: its numbers as they were, its cost, and the account after it."""

    order: Order
    at: datetime
    numbers: tuple[Number, ...]
    total_micros: int
    account: Account

    @property
    def prices_micros(self) -> tuple[int, ...]:
        """Of each number, in the order's order."""
        return tuple(number.price_micros for number in self.numbers)


class Replayed(NamedTuple):
    """An order that had been carried out before under its idempotency key: what was answered then."""

    answer: bytes


@dataclass(frozen=True, slots=True)
class Retry:
    """An order that cannot be decided now, since somebody else is at work on what it needs. Nothing has been done."""


Decision = Placed | Replayed | Refusal | Retry
