"""The values that the rules work on: orders, and what the database holds about everything that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from server.errors import Refusal

Id = str
"""A UUID as canonical text. Requests and the database's results have it so, and it is cheaper than an object."""


class Idempotency(NamedTuple):
    """An idempotency key, and the digest of the request that it was sent with."""

    key: str
    fingerprint: bytes
    method: str | None = None
    """The RPC, if it is not OrderNumbers."""


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
    """A requested order. Its ids are those that it has if it is placed: one assignment id per number, in order.

    They are UUIDv7, and the order's is made first. So the assignments of an order have the next ids after its own.
    """

    id: Id
    organization_id: Id
    api_key_id: Id
    scope: str
    request_id: str
    numbers: tuple[str, ...]
    assignment_ids: tuple[Id, ...]
    routing: Routing = Routing()
    idempotency: Idempotency | None = None
    quantity: int | None = None
    """How many numbers a bulk order asked for. None if the caller named the numbers."""


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


# ---------------------------------------------------------------- numbers of an organization


class AssignedNumber(NamedTuple):
    """A number of an organization, as responses have it. The names are those of the proto."""

    id: Id
    number: str
    number_type: str
    sms_enabled: bool
    mms_enabled: bool
    inbound_url: str | None
    status_url: str | None
    label: str | None
    campaign_id: Id | None
    created_at: datetime
    updated_at: datetime

    @property
    def routing(self) -> Routing:
        return Routing(self.inbound_url, self.status_url, self.label, self.campaign_id)


class AvailableNumber(NamedTuple):
    """A number that every organization can order."""

    number: str
    number_type: str
    sms_enabled: bool
    mms_enabled: bool
    price_micros: int


class Criteria(NamedTuple):
    """Which numbers a search or a bulk order is for. None allows all."""

    area_code: str | None = None
    number_type: str | None = None
    pattern: str | None = None
    sms_enabled: bool | None = None
    mms_enabled: bool | None = None


# ---------------------------------------------------------------- writes that are not orders of named numbers


class Hold(NamedTuple):
    """Keep these numbers for the organization, unless it would then hold more than `held_max`."""

    numbers: tuple[str, ...]
    minutes: int
    held_max: int


class EndHold(NamedTuple):
    """End a hold."""

    hold_id: Id


class Route(NamedTuple):
    """Change fields of a number's routing, by name. None removes a value. What is not named stays."""

    assignment_id: Id
    changes: Mapping[str, Any]


class Release(NamedTuple):
    """Give numbers back. Each rests for `rest_ms`. A bulk release refuses no id."""

    assignment_ids: tuple[Id, ...]
    rest_ms: int
    is_bulk: bool


class Choose(NamedTuple):
    """Choose that many numbers, and order them."""

    quantity: int
    criteria: Criteria
    assignment_ids: tuple[Id, ...]
    routing: Routing
    proposed: tuple[str, ...] = ()
    """Numbers that a search has found, to choose from."""


Action = Hold | EndHold | Route | Release | Choose


class Write(NamedTuple):
    """A requested change. Its id is made once, so that every attempt is the same write."""

    id: Id
    organization_id: Id
    api_key_id: Id
    scope: str
    request_id: str
    action: Action
    idempotency: Idempotency | None = None

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers that the request names."""
        return self.action.numbers if isinstance(self.action, Hold) else ()


class Held(NamedTuple):
    """A hold, and the numbers that it keeps."""

    id: Id
    numbers: Sequence[str]
    created_at: datetime
    expires_at: datetime


class HoldEnded(NamedTuple):
    """The numbers that a hold kept until it was ended."""

    hold_id: Id
    numbers: Sequence[str]


class Routed(NamedTuple):
    """A number before and after a change of its routing. They are equal if nothing changed."""

    before: AssignedNumber
    after: AssignedNumber


class Released(NamedTuple):
    """What became of the ids of a release. `released` are the numbers as they were."""

    released: Sequence[AssignedNumber]
    already_released: Sequence[Id]
    unknown: Sequence[Id]
    available_at: datetime


Result = Held | HoldEnded | Routed | Released | Placed


class Done(NamedTuple):
    """A write that is carried out, and the response to it."""

    write: Write
    at: datetime
    result: Result
    response: bytes


Outcome = Done | Replayed | Refusal | Retry
"""What became of a write."""
