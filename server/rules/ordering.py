"""The decision on orders: plain values in, plain values out. The rules of the sale are here.

The caller has read the state under locks and keeps them until the decisions are written (store/orders.py).
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from server.errors import Code, Refusal, Shortage
from server.rules.values import Account, Decision, Id, KeyGrant, Number, Order, Placed, Replayed, Retry, State

SENDING_IDENTITIES = frozenset({"VERIFIED", "VETTED_VERIFIED"})


def is_available(number: Number, organization_id: Id, now: datetime) -> bool:
    """Whether the organization can order it: not assigned, not in quarantine, not held for another organization."""
    if number.assignment_id is not None:
        return False
    return number.free_at is None or number.free_at <= now or number.held_by == organization_id


def is_valid(key: KeyGrant, now: datetime) -> bool:
    """Whether the key is neither revoked nor expired."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)


def decide(orders: Iterable[Order], state: State) -> list[Decision]:
    """Decide each order in turn. Each sees what the orders before it took."""
    taken: set[str] = set()
    used_keys: set[tuple[Id, str]] = set()
    accounts = dict(state.accounts)
    decisions: list[Decision] = []
    for order in orders:
        key = _scoped_key(order)
        # The earlier order's response is stored when it is written. Until then there is none to replay.
        decision = Retry() if key in used_keys else _decide_one(order, state, taken, accounts)
        if isinstance(decision, Placed):
            taken.update(order.numbers)
            if key:
                used_keys.add(key)
            accounts[order.organization_id] = decision.account
        decisions.append(decision)
    return decisions


def _decide_one(order: Order, state: State, taken: set[str], accounts: Mapping[Id, Account]) -> Decision:
    if order.organization_id in state.locked_elsewhere:
        return Retry()
    # Before the locked numbers: a refusal or a replay needs none of them.
    known = _key_refusal(order, state) or _replay(order, state)
    if known:
        return known
    if not state.locked_elsewhere.isdisjoint(order.numbers):
        return Retry()
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
    if key is None or not is_valid(key, state.now):
        return Refusal(Code.UNAUTHORIZED)
    return None if order.scope in key.scopes else Refusal(Code.FORBIDDEN)


def _scoped_key(order: Order) -> tuple[Id, str] | None:
    """The idempotency key with its organization. Two organizations may use the same key."""
    return (order.organization_id, order.idempotency.key) if order.idempotency else None


def _replay(order: Order, state: State) -> Replayed | Refusal | None:
    key = _scoped_key(order)
    stored = state.stored_responses.get(key) if key else None
    if order.idempotency is None or stored is None:
        return None
    if stored.fingerprint != order.idempotency.fingerprint:
        return Refusal(Code.IDEMPOTENCY_KEY_REUSED)
    return Replayed(stored.response)


def _campaign_refusal(order: Order, state: State) -> Refusal | None:
    campaign_id = order.routing.campaign_id
    if campaign_id is None:
        return None
    campaign = state.campaigns.get((order.organization_id, campaign_id))
    if campaign is None:
        return Refusal(Code.NOT_FOUND)
    if campaign.status != "ACTIVE":
        return Refusal(Code.VALIDATION_FAILED, details={"campaign_id": "must be ACTIVE"})
    if campaign.identity_status not in SENDING_IDENTITIES:
        return Refusal(Code.VALIDATION_FAILED, details={"campaign_id": "brand must be VERIFIED or VETTED_VERIFIED"})
    return None


def _shortage(order: Order, state: State, taken: set[str]) -> Refusal | None:
    def can_be_taken(number: str) -> bool:
        row = state.numbers.get(number)
        return row is not None and number not in taken and is_available(row, order.organization_id, state.now)

    unavailable = [number for number in order.numbers if not can_be_taken(number)]
    if not unavailable:
        return None
    requested, available = len(order.numbers), len(order.numbers) - len(unavailable)
    return Refusal(
        Code.INSUFFICIENT_INVENTORY,
        message=f"insufficient inventory: requested {requested}, available {available}",
        shortage=Shortage(available, unavailable),
    )
