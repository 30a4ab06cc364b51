"""The decisions on holds. As for orders, the caller has read the state under locks."""

from datetime import timedelta

from server.errors import Code, Refusal
from server.rules.ordering import shortage
from server.rules.values import Held, Hold, Id, State


def hold(organization_id: Id, id_: Id, action: Hold, held_already: int, state: State) -> Held | Refusal:
    """Keep numbers for the organization: all that are named, or none. It holds `held_already` others."""
    refusal = shortage(organization_id, action.numbers, state)
    if refusal:
        return refusal
    if held_already + len(action.numbers) > action.held_max:
        return Refusal(Code.LIMIT_EXCEEDED, message=f"limit exceeded: at most {action.held_max} numbers can be held")
    return Held(id_, action.numbers, state.now, state.now + timedelta(minutes=action.minutes))
