"""Holds: the steps of the writes that make and end them."""

from collections.abc import Sequence

from server.errors import Code, Refusal
from server.rules import holds
from server.rules.values import EndHold, Held, Hold, HoldEnded, State, Write
from server.store.connection import Row
from server.store.orders import LOCK_NUMBERS
from server.store.statements import BoundStatement, array, load
from server.store.steps import Steps, origin

COUNT_HELD = load("hold", "count_held")
WRITE_HOLD = load("hold", "write_hold")
LOCK_NUMBERS_OF_HOLD = load("hold", "lock_numbers_of_hold")
READ_HOLD = load("hold", "read_hold")
END_HOLD = load("hold", "end_hold")
STATEMENTS = (LOCK_NUMBERS, COUNT_HELD, WRITE_HOLD, LOCK_NUMBERS_OF_HOLD, READ_HOLD, END_HOLD)


def _lock_named(write: Write) -> dict[str, BoundStatement]:
    return {"numbers": LOCK_NUMBERS(numbers=array(write.numbers))}


def _count_held(write: Write) -> dict[str, BoundStatement]:
    return {"rows": COUNT_HELD(organization_id=write.organization_id, numbers=array(write.numbers))}


def _hold(write: Write, rows: Sequence[Row], state: State) -> Held | Refusal:
    assert isinstance(write.action, Hold)  # noqa: S101
    ((held_already,),) = rows
    return holds.hold(write.organization_id, write.id, write.action, held_already, state)


def _write_hold(write: Write, held: Held, at: str) -> list[BoundStatement]:
    # In the order of the request: the response to GetHold has it too.
    numbers = "{" + ",".join(held.numbers) + "}"
    return [WRITE_HOLD(**origin(write), numbers=numbers, created_at=at, expires_at=held.expires_at.isoformat())]


def _hold_id(write: Write) -> str:
    assert isinstance(write.action, EndHold)  # noqa: S101
    return write.action.hold_id


def _lock_numbers_of_hold(write: Write) -> dict[str, BoundStatement]:
    return {"locked": LOCK_NUMBERS_OF_HOLD(organization_id=write.organization_id, hold_id=_hold_id(write))}


def _read_hold(write: Write) -> dict[str, BoundStatement]:
    return {"rows": READ_HOLD(organization_id=write.organization_id, hold_id=_hold_id(write))}


def _end_hold(_: Write, rows: Sequence[Row], __: State) -> HoldEnded | Refusal:
    if not rows:
        return Refusal(Code.NOT_FOUND)
    return HoldEnded(*rows[0][:2])


def _write_hold_end(write: Write, ended: HoldEnded, at: str) -> list[BoundStatement]:
    return [END_HOLD(**origin(write), hold_id=ended.hold_id, numbers=array(ended.numbers), ended_at=at)]


MAKE = Steps(_hold, _write_hold, lock=_lock_named, read=_count_held)
END = Steps(_end_hold, _write_hold_end, lock=_lock_numbers_of_hold, read=_read_hold)
