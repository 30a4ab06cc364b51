"""The decision on orders: plain values in, plain values out. All the rules of the sale live here.

It imports neither gRPC nor SQL. What it is given has been read under locks that hold until its answer is written
(store/orders.py), so what it says is true when it is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple

from server.errors import Code, Refusal, Shortage

Id = str
"""A UUID as canonical text: as the wire and the database's answers have it, and cheaper than an object."""

SENDING_IDENTITIES = frozenset({"VERIFIED", "VETTED_VERIFIED"})


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


class Remembered(NamedTuple):
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
    remembered: Mapping[tuple[Id, str], Remembered] = MappingProxyType({})
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
class Busy:
    """An order that cannot be decided now, since somebody else is at work on what it needs. Nothing has been done."""


Decision = Placed | Replayed | Refusal | Busy


def decide(orders: Iterable[Order], state: State) -> list[Decision]:
    """What becomes of each order, in turn; each sees what the ones before it took."""
    taken: set[str] = set()
    used: set[tuple[Id, str]] = set()
    accounts = dict(state.accounts)
    decisions: list[Decision] = []
    for order in orders:
        claim = _claim(order)
        # Its answer is known when the order that took the key before it is written, and no sooner.
        decision = Busy() if claim in used else _decide_one(order, state, taken, accounts)
        if isinstance(decision, Placed):
            taken.update(order.numbers)
            if claim:
                used.add(claim)
            accounts[order.organization_id] = decision.account
        decisions.append(decision)
    return decisions


def _decide_one(order: Order, state: State, taken: set[str], accounts: Mapping[Id, Account]) -> Decision:
    if order.organization_id in state.busy:
        return Busy()
    known = _key_refusal(order, state) or _replay(order, state)
    if known:
        return known
    if not state.busy.isdisjoint(order.numbers):
        return Busy()
    refusal = _campaign_refusal(order, state) or _shortage(order, state, taken)
    if refusal:
        return refusal
    numbers = tuple(state.numbers[number] for number in order.numbers)
    total_micros = sum(number.price_micros for number in numbers)
    before = accounts[order.organization_id]
    if total_micros > before.balance_micros:
        return Refusal(Code.INSUFFICIENT_CREDIT)
    account = Account(before.balance_micros - total_micros, before.entry_no + 1)
    return Placed(order, state.now, numbers, total_micros, account)


def _key_refusal(order: Order, state: State) -> Refusal | None:
    key = state.keys.get(order.api_key_id)
    if key is None or not key.is_valid(state.now):
        return Refusal(Code.UNAUTHORIZED)
    return None if order.scope in key.scopes else Refusal(Code.FORBIDDEN)


def _claim(order: Order) -> tuple[Id, str] | None:
    return (order.organization_id, order.idempotency.key) if order.idempotency else None


def _replay(order: Order, state: State) -> Replayed | Refusal | None:
    claim = _claim(order)
    remembered = state.remembered.get(claim) if claim else None
    if order.idempotency is None or remembered is None:
        return None
    if remembered.fingerprint != order.idempotency.fingerprint:
        return Refusal(Code.IDEMPOTENCY_KEY_REUSED)
    return Replayed(remembered.answer)


def _campaign_refusal(order: Order, state: State) -> Refusal | None:
    if order.campaign_id is None:
        return None
    campaign = state.campaigns.get((order.organization_id, order.campaign_id))
    if campaign is None:
        return Refusal(Code.NOT_FOUND)
    if campaign.status != "ACTIVE":
        return Refusal(Code.VALIDATION_FAILED, details={"campaign_id": "must be ACTIVE"})
    if campaign.identity_status not in SENDING_IDENTITIES:
        return Refusal(Code.VALIDATION_FAILED, details={"campaign_id": "brand must be VERIFIED or VETTED_VERIFIED"})
    return None


def _shortage(order: Order, state: State, taken: set[str]) -> Refusal | None:
    def is_available(number: str) -> bool:
        row = state.numbers.get(number)
        return row is not None and number not in taken and row.is_available_to(order.organization_id, state.now)

    unavailable = [number for number in order.numbers if not is_available(number)]
    if not unavailable:
        return None
    requested, available = len(order.numbers), len(order.numbers) - len(unavailable)
    return Refusal(
        Code.INSUFFICIENT_INVENTORY,
        message=f"insufficient inventory: requested {requested}, available {available}",
        shortage=Shortage(available, unavailable),
    )
