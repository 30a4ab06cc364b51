"""Bulk orders: the steps of the write that chooses numbers and orders them.

A search proposes more numbers than are wanted. The transaction locks as many of them as it needs, and skips those that
another one has locked. So it never waits for a number, and bulk orders do not take each other's numbers.
"""

from collections.abc import Sequence

from server.errors import Refusal
from server.rules.access import campaign_refusal
from server.rules.ordering import decide, too_few
from server.rules.values import Choose, Order, Placed, Replayed, Result, Retry, State, Write
from server.store import orders
from server.store.connection import PipelinedConnection, Row
from server.store.searches import Search, search
from server.store.statements import BoundStatement, array, load
from server.store.steps import Steps

LOCK_CHOSEN = load("order", "lock_chosen")
STATEMENTS = (LOCK_CHOSEN, orders.WRITE)

SPARE_NUMBERS = 100
"""How many more numbers the search proposes, in case others take some of them first."""


async def propose(connection: PipelinedConnection, write: Write) -> Write:
    """Return the write with the numbers that its transaction may choose from. Locks nothing."""
    assert isinstance(write.action, Choose)  # noqa: S101
    wanted = Search(write.api_key_id, write.action.criteria, write.action.quantity + SPARE_NUMBERS)
    (found,) = await connection.run(search(wanted))
    # Without a valid key there is no row, and with nothing found there is one of nulls.
    numbers = tuple(number for _, number, *_ in found.rows if number)
    return write._replace(action=write.action._replace(proposed=numbers))


def _lock_chosen(write: Write) -> dict[str, BoundStatement]:
    assert isinstance(write.action, Choose)  # noqa: S101
    return {"numbers": LOCK_CHOSEN(numbers=array(write.action.proposed), rows=str(write.action.quantity))}


def _order(write: Write, _: Sequence[Row], state: State) -> Result | Refusal | Retry:
    assert isinstance(write.action, Choose)  # noqa: S101
    action = write.action
    refusal = campaign_refusal(write.organization_id, action.routing.campaign_id, state)
    if refusal:
        return refusal
    if len(state.numbers) < action.quantity:
        # Enough were there: others have them locked, and may yet be refused. Another search finds different ones.
        return Retry() if len(action.proposed) >= action.quantity else too_few(action.quantity, len(action.proposed))
    (decision,) = decide([_order_of(write, action, tuple(state.numbers))], state)
    assert not isinstance(decision, Replayed)  # noqa: S101  writes.py has looked for a stored response
    return decision


def _order_of(write: Write, action: Choose, numbers: tuple[str, ...]) -> Order:
    return Order(
        id=write.id,
        organization_id=write.organization_id,
        api_key_id=write.api_key_id,
        scope=write.scope,
        request_id=write.request_id,
        numbers=numbers,
        assignment_ids=action.assignment_ids,
        routing=action.routing,
        quantity=action.quantity,
    )


def _write_order(_: Write, placed: Placed, __: str) -> list[BoundStatement]:
    return orders.writes([placed])


CHOOSE = Steps(_order, _write_order, lock=_lock_chosen)
