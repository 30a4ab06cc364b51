"""The order transaction: a batch of orders is locked, read, decided and written in two round trips to the database.

Correctness rests on four facts. Availability is in the row that is locked. What else decides an order is read after its
organization's row is locked, and every change of it takes that lock too. Rows are locked in one order everywhere. Only
what COMMIT has confirmed is returned.
"""

from collections.abc import Sequence
from typing import NamedTuple

from psycopg.errors import LockNotAvailable, QueryCanceled

from server.messages import order_response
from server.rules.ordering import decide
from server.rules.values import Decision, Order, Placed, Routing, State
from server.store import state, transaction
from server.store.connection import PipelinedConnection, Result
from server.store.responses import STORE_RESPONSES, store
from server.store.statements import BoundStatement, JsonRows, Statement, array, load
from server.store.transaction import LOCK_ORGANIZATIONS, InProgress, Limits, finish, run

LOCK_NUMBERS = load("order", "lock_numbers")
LOCK_NUMBERS_WITHOUT_RESPONSE = load("order", "lock_numbers_without_response")
LOCKING = (LOCK_NUMBERS, LOCK_NUMBERS_WITHOUT_RESPONSE, LOCK_ORGANIZATIONS)
SKIPPING = {statement: statement.skipping_locked() for statement in LOCKING}
READ_EXISTING_NUMBERS = load("order", "read_existing_numbers")
FIND_ORDER = load("order", "find_order")
WRITE = load("order", "write")
CLAIM_KEY = load("idempotency", "claim_key")
RELEASE_KEY = load("idempotency", "release_key")

STATEMENTS = (
    *(*transaction.STATEMENTS, LOCK_NUMBERS, LOCK_NUMBERS_WITHOUT_RESPONSE, *SKIPPING.values()),
    *(READ_EXISTING_NUMBERS, *state.STATEMENTS, FIND_ORDER),
    *(WRITE, STORE_RESPONSES, CLAIM_KEY, RELEASE_KEY),
)
"""What a connection for orders prepares."""


# The other columns are fields of the order.
PLACED_ROWS = JsonRows(
    WRITE,
    "placed",
    "order.{}",
    total_micros="total_micros",
    entry_no="account.entry_no",
    balance_micros="account.balance_micros",
    prices_micros="prices_micros",
    **{name: f"order.routing.{name}" for name in Routing._fields},
)


class _KeyedNumber(NamedTuple):
    """A number of an order, with the order's idempotency key, if it has one."""

    number: str
    organization_id: str
    key: str | None


WANTED_ROWS = JsonRows(LOCK_NUMBERS_WITHOUT_RESPONSE, "wanted")


async def place(
    connection: PipelinedConnection, orders: Sequence[Order], limits: Limits, *, skip_locked: bool = False
) -> list[Decision]:
    """Carry out a batch in one transaction, as far as it can be. Return the decision on each order.

    With `skip_locked` an order is decided as Retry when another transaction has locked a row of it. Otherwise that
    raises LockNotAvailable.

    Raises OutcomeUnknown if the orders may have been carried out. After any other error (psycopg.Error, DatabaseAway)
    they certainly were not, and the connection needs a rollback.
    """
    results = await run(connection, limits.begin() | _reads(orders, skip_locked=skip_locked))
    decisions = decide(orders, _state(orders, results))
    placed = [decision for decision in decisions if isinstance(decision, Placed)]
    await finish(connection, writes(placed), {each.order.id: each for each in placed})
    return decisions


async def place_alone(
    connection: PipelinedConnection, order: Order, limits: Limits, sent: Placed | None = None
) -> Decision:
    """As `place`, for one order that its batch could not decide. It claims its idempotency key first.

    `sent` is what an earlier attempt has sent, whose outcome is unknown.

    Raises InProgress, too.
    """
    begin = limits.begin()
    is_claimed = False
    if order.idempotency:
        is_claimed = await _claim(connection, begin, order)
        begin = {}
    reads = _reads([order], is_claimed=is_claimed)
    if sent:
        # This attempt waited for the earlier one's locks. So either the order is there now, or it never will be.
        reads["found"] = FIND_ORDER(organization_id=order.organization_id, id=order.id)
    results = await run(connection, begin | reads)
    release = [_key_statement(RELEASE_KEY, order)] if is_claimed else []
    if sent and results["found"].rows:
        # Commit even if nothing is written: a standby that has our commit has the earlier one too.
        await finish(connection, release, {})
        return sent
    (decision,) = decide([order], _state([order], results))
    placed = [decision] if isinstance(decision, Placed) else []
    await finish(connection, [*release, *writes(placed)], {each.order.id: each for each in placed})
    return decision


async def _claim(connection: PipelinedConnection, begin: dict[str, BoundStatement], order: Order) -> bool:
    """Whether the key was free and is now locked by this transaction. Raises InProgress."""
    claim = _key_statement(CLAIM_KEY, order, order_id=order.id)
    try:
        results = await run(connection, begin | {"claim": claim})
    except (LockNotAvailable, QueryCanceled) as error:
        raise InProgress from error
    return results["claim"].tag == "INSERT 0 1"


def _key_statement(statement: Statement, order: Order, **parameters: str) -> BoundStatement:
    assert order.idempotency  # noqa: S101
    return statement(organization_id=order.organization_id, key=order.idempotency.key, **parameters)


def _reads(
    orders: Sequence[Order], *, skip_locked: bool = False, is_claimed: bool = False
) -> dict[str, BoundStatement]:
    """The locks and reads of round trip 1, in the order of the locks."""
    numbers = array([number for order in orders for number in order.numbers])
    # A key that this transaction has claimed can have no stored response.
    keyed = [] if is_claimed else [order for order in orders if order.idempotency]

    def locking(statement: Statement, **parameters: str) -> BoundStatement:
        return (SKIPPING[statement] if skip_locked else statement)(**parameters)

    reads = {
        "numbers": locking(LOCK_NUMBERS_WITHOUT_RESPONSE, wanted=WANTED_ROWS.json(_wanted(orders)))
        if keyed
        else locking(LOCK_NUMBERS, numbers=numbers),
        "accounts": locking(LOCK_ORGANIZATIONS, organization_ids=array([order.organization_id for order in orders])),
        **state.reads(orders, keyed, [order.routing.campaign_id for order in orders]),
    }
    if keyed or skip_locked:
        reads["existing"] = READ_EXISTING_NUMBERS(numbers=numbers)
    return reads


def _wanted(orders: Sequence[Order]) -> list[_KeyedNumber]:
    return [
        _KeyedNumber(number, order.organization_id, order.idempotency.key if order.idempotency else None)
        for order in orders
        for number in order.numbers
    ]


def _locked_elsewhere(orders: Sequence[Order], results: dict[str, Result]) -> frozenset[str]:
    """The numbers and organizations of these orders that exist, and that were not locked here."""
    if "existing" not in results:
        return frozenset()
    numbers = {number for (number,) in results["existing"].rows} - {row[0] for row in results["numbers"].rows}
    organizations = {order.organization_id for order in orders} - {row[0] for row in results["accounts"].rows}
    return frozenset(numbers | organizations)


def _state(orders: Sequence[Order], results: dict[str, Result]) -> State:
    return state.state_of(results, _locked_elsewhere(orders, results))


def writes(placed: Sequence[Placed]) -> list[BoundStatement]:
    """The statements that carry out orders, and store the responses to those with an idempotency key."""
    if not placed:
        return []
    at = placed[0].at
    keyed = [(each.order, order_response(each)) for each in placed if each.order.idempotency]
    return [WRITE(placed=PLACED_ROWS.json(placed), sold_at=at.isoformat()), *store(keyed, at)]
