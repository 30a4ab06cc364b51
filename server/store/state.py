"""What every write reads after it has locked its organization, and the state that the rules decide on."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from server.rules.access import Keyed
from server.rules.values import Account, Campaign, Id, KeyGrant, Number, State, StoredResponse
from server.store.connection import Result
from server.store.statements import BoundStatement, JsonRows, array, load

READ_KEYS = load("order", "read_keys")
READ_CAMPAIGNS = load("order", "read_campaigns")
READ_STORED_RESPONSES = load("order", "read_stored_responses")
STATEMENTS = (READ_KEYS, READ_CAMPAIGNS, READ_STORED_RESPONSES)

KEY_ROWS = JsonRows(READ_STORED_RESPONSES, "keys", key="idempotency.key")


def reads(
    writes: Sequence[Keyed], keyed: Sequence[Keyed], campaign_ids: Iterable[Id | None]
) -> dict[str, BoundStatement]:
    """The reads of API keys, of campaigns, and of the responses that `keyed` may have stored."""
    found = {"keys": READ_KEYS(api_key_ids=array([write.api_key_id for write in writes]))}
    if keyed:
        found["stored_responses"] = READ_STORED_RESPONSES(keys=KEY_ROWS.json(keyed))
    if named := [campaign_id for campaign_id in campaign_ids if campaign_id]:
        found["campaigns"] = READ_CAMPAIGNS(campaign_ids=array(named))
    return found


def state_of(results: dict[str, Result], locked_elsewhere: frozenset[str] = frozenset()) -> State:
    """The state in the results of `reads`, and of the statements that lock numbers and accounts."""
    rows = {name: result.rows for name, result in results.items()}
    keys = rows["keys"]
    return State(
        now=keys[0][0] if keys else datetime.now(UTC),  # without a key nothing is written, whatever the time
        numbers={row[0]: Number(*row[1:]) for row in rows.get("numbers", ())},
        accounts={row[0]: Account(*row[1:]) for row in rows["accounts"]},
        keys={row[1]: KeyGrant(*row[2:]) for row in keys},
        campaigns={(row[0], row[1]): Campaign(*row[2:]) for row in rows.get("campaigns", ())},
        stored_responses={(row[0], row[1]): StoredResponse(*row[2:]) for row in rows.get("stored_responses", ())},
        locked_elsewhere=locked_elsewhere,
    )
