"""The values that the rules work on: orders, and what the database holds about everything that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from server.errors import Refusal

Id = str
"""A UUID as canonical text. Requests and the database's results have it so, and it is cheaper than an object."""


class Idempotency(NamedTuple):
    """An idempotency key, and the digest of the request that it was sent with."""

    key: str
    fingerprint: bytes


class Routing(NamedTuple):
    """The optional fields of an order. Each of its numbers has them as well.

    The proto's fields, the database's columns and order.sql have the same names. So code that copies them needs no
    change for a new one.
    """

    inbound_url: str | None = None
    status_url: str | None = None
    label: str | None = None
    campaign_id: Id | None = None


class Order(NamedTuple):
    """A requested order. Its ids are those that it has if it is placed: one assignment id per number, in order."""

    id: Id
    organization_id: Id
    api_key_id: Id
    scope: str
    request_id: str
    numbers: tuple[str, ...]
    assignment_ids: tuple[Id, ...]
    routing: Routing = Routing()
    idempotency: Idempotency | None = None


class Number(NamedTuple):
    """A number's row in the inventory: what it is, what it costs, and who has it."""

    number_type: str
    sms_enabled: bool
    mms_enabled: bool
    price_micros: int
    assignment_id: Id | None
    held_by: Id | None
    free_at: datetime | None


class Account(NamedTuple):
    """An organization's balance, and the number of its newest ledger entry."""

    balance_micros: int
    entry_no: int


class KeyGrant(NamedTuple):
    """What an API key allows, and until when."""

    scopes: Sequence[str]
    expires_at: datetime | None
    revoked_at: datetime | None


class Campaign(NamedTuple):
    """A messaging campaign's status, and the identity status of its brand, if it has one."""

    status: str
    identity_status: str | None


class StoredResponse(NamedTuple):
    """What is stored under an idempotency key: the response, and the digest of the request that got it."""

    fingerprint: bytes
    response: bytes


class State(NamedTuple):
    """What the database holds about everything that a batch of orders names. What is not in it does not exist."""

    now: datetime
    numbers: Mapping[str, Number] = MappingProxyType({})
    accounts: Mapping[Id, Account] = MappingProxyType({})
    keys: Mapping[Id, KeyGrant] = MappingProxyType({})
    campaigns: Mapping[tuple[Id, Id], Campaign] = MappingProxyType({})
    """By organization and campaign."""
    stored_responses: Mapping[tuple[Id, str], StoredResponse] = MappingProxyType({})
    """By organization and idempotency key."""
    locked_elsewhere: frozenset[str] = frozenset()
    """Numbers and organizations whose rows another transaction has locked. Nothing else is known about them."""


class Placed(NamedTuple):
    """An order that is carried out: its numbers as they were, its cost, and the account after it."""

    order: Order
    at: datetime
    numbers: tuple[Number, ...]
    total_micros: int
    account: Account

    @property
    def prices_micros(self) -> tuple[int, ...]:
        """The price of each number, in the order's order."""
        return tuple(number.price_micros for number in self.numbers)


class Replayed(NamedTuple):
    """An order that was carried out earlier under its idempotency key: the response from then."""

    response: bytes


@dataclass(frozen=True, slots=True)
class Retry:
    """An order that is not decided yet, because another transaction is in the way. Nothing of it is written."""


Decision = Placed | Replayed | Refusal | Retry
