"""The transaction of every write that is not an order of named numbers: one write, in two round trips.

Its correctness rests on the same facts as that of an order (orders.py). Its idempotency key needs no claim: stored
responses are read after the organization is locked. By then another write with the same key has committed, or has not
begun.
"""

from server.errors import Refusal
from server.messages import response_to
from server.rules.access import known_result
from server.rules.values import (
    Choose,
    Done,
    EndHold,
    Held,
    Hold,
    HoldEnded,
    Outcome,
    Placed,
    Release,
    Result,
    Retry,
    Route,
    Routed,
    State,
    Write,
)
from server.store import assignments, bulk_orders, holds, searches, state, transaction
from server.store.connection import PipelinedConnection
from server.store.connection import Result as Rows
from server.store.responses import STORE_RESPONSES, store
from server.store.statements import BoundStatement, array, load
from server.store.steps import Steps
from server.store.transaction import LOCK_ORGANIZATIONS, Limits, finish, run, wait_for_locks

FIND_WRITE = load("assignment", "find_write")

STATEMENTS = tuple(
    dict.fromkeys(
        (
            *(*transaction.STATEMENTS, *state.STATEMENTS, FIND_WRITE, STORE_RESPONSES),
            *searches.STATEMENTS,
            *(*holds.STATEMENTS, *assignments.STATEMENTS, *bulk_orders.STATEMENTS),
        )
    )
)
"""What a connection for writes prepares."""

STEPS: dict[type, Steps] = {
    Hold: holds.MAKE,
    EndHold: holds.END,
    Route: assignments.ROUTE,
    Release: assignments.RELEASE,
    Choose: bulk_orders.CHOOSE,
}


async def carry_out(connection: PipelinedConnection, write: Write, limits: Limits, sent: Done | None = None) -> Outcome:
    """Carry out a write in one transaction.

    `sent` is what an earlier attempt has sent, whose outcome is unknown. Raises as `orders.place` does.
    """
    if isinstance(write.action, Choose):
        write = await bulk_orders.propose(connection, write)
    steps = STEPS[type(write.action)]
    if sent:
        # At SERIALIZABLE a transaction sees only what had committed before it waited. So another one waits first.
        await wait_for_locks(connection, limits, [write.organization_id])
    results = await run(connection, limits.begin() | _reads(write, steps) | _find(sent))
    if sent and results["found"].rows:
        # Commit even if nothing is written: a standby that has our commit has the earlier one too.
        await finish(connection, [], {})
        return sent
    outcome = _decide(write, steps, results, state.state_of(results))
    statements = _statements(steps, outcome) if isinstance(outcome, Done) else []
    await finish(connection, statements, {write.id: outcome} if statements else {})
    return outcome


def _reads(write: Write, steps: Steps) -> dict[str, BoundStatement]:
    """The locks and reads of round trip 1, in the order of the locks."""
    return {
        **steps.lock(write),
        "accounts": LOCK_ORGANIZATIONS(organization_ids=array([write.organization_id])),
        **state.reads([write], [write] if write.idempotency else [], [_campaign_id(write)]),
        **steps.read(write),
    }


def _campaign_id(write: Write) -> str | None:
    match write.action:
        case Route(changes=changes):
            return changes.get("campaign_id")
        case Choose(routing=routing):
            return routing.campaign_id
    return None


def _find(sent: Done | None) -> dict[str, BoundStatement]:
    """Looks for what an earlier attempt may have written. This one waited for its locks."""
    if sent is None:
        return {}
    action, write = sent.write.action, sent.write
    statement = FIND_WRITE(
        organization_id=write.organization_id,
        id=write.id,
        numbers=array(_numbers(sent.result)),
        hold_id=action.hold_id if isinstance(action, EndHold) else "",
        at=sent.at.isoformat(),
        key=write.idempotency.key if write.idempotency else "",
    )
    return {"found": statement}


def _numbers(result: Result) -> list[str]:
    match result:
        case Held(numbers=numbers) | HoldEnded(numbers=numbers):
            return list(numbers)
        case Routed(before=number):
            return [number.number]
        case Placed(order=order):
            return list(order.numbers)
    return [number.number for number in result.released]


def _decide(write: Write, steps: Steps, results: dict[str, Rows], found: State) -> Outcome:
    known = known_result(write, found)
    if known:
        return known
    rows = results["rows"].rows if "rows" in results else []
    result = steps.decide(write, rows, found)
    if isinstance(result, Refusal | Retry):
        return result
    return Done(write, found.now, result, response_to(write, result))


def _statements(steps: Steps, done: Done) -> list[BoundStatement]:
    return [
        *steps.write(done.write, done.result, done.at.isoformat()),
        *store([(done.write, done.response)], done.at),
    ]
