"""The decision on orders: plain values in, plain values out. The rules of the sale are here.

The caller has read the state under locks and keeps them until the decisions are written (store/orders.py).
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime

from server.errors import Code, Refusal, Shortage
from server.rules.access import campaign_refusal, known_result, scoped_key
from server.rules.values import Account, Decision, Id, Number, Order, Placed, Retry, State


def is_available(number: Number, organization_id: Id, now: datetime) -> bool:
    """Whether the organization can order it: not assigned, and not resting or held for another one."""
    if number.assignment_id is not None:
        return False
    return number.free_at is None or number.free_at <= now or number.held_by == organization_id


def decide(orders: Iterable[Order], state: State) -> list[Decision]:
    """Decide each order in turn. Each sees what the orders before it took."""
    taken: set[str] = set()
    used_keys: set[tuple[Id, str]] = set()
    accounts = dict(state.accounts)
    decisions: list[Decision] = []
    for order in orders:
        key = scoped_key(order)
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
    known = known_result(order, state)
    if known:
        return known
    if not state.locked_elsewhere.isdisjoint(order.numbers):
        return Retry()
    refusal = campaign_refusal(order.organization_id, order.routing.campaign_id, state)
    refusal = refusal or shortage(order.organization_id, order.numbers, state, taken)
    if refusal:
        return refusal
    numbers = tuple(state.numbers[number] for number in order.numbers)
    total_micros = sum(number.price_micros for number in numbers)
    before = accounts[order.organization_id]
    if total_micros > before.balance_micros:
        return Refusal(Code.INSUFFICIENT_CREDIT)
    account = Account(before.balance_micros - total_micros, before.entry_no + 1)
    return Placed(order, state.now, numbers, total_micros, account)


def shortage(
    organization_id: Id, numbers: Sequence[str], state: State, taken: Container[str] = frozenset()
) -> Refusal | None:
    """INSUFFICIENT_INVENTORY if the organization cannot order all of these numbers. `taken` are no longer there."""

    def can_be_taken(number: str) -> bool:
        row = state.numbers.get(number)
        return row is not None and number not in taken and is_available(row, organization_id, state.now)

    unavailable = [number for number in numbers if not can_be_taken(number)]
    return too_few(len(numbers), len(numbers) - len(unavailable), unavailable) if unavailable else None


def too_few(requested: int, available: int, unavailable: Sequence[str] = ()) -> Refusal:
    """The refusal of a request for more numbers than there are."""
    return Refusal(
        Code.INSUFFICIENT_INVENTORY,
        message=f"insufficient inventory: requested {requested}, available {available}",
        shortage=Shortage(available, unavailable),
    )
