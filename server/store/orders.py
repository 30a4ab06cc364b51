"""The order transaction: a batch of orders is locked, read, decided and written in two round trips to the database.

Correctness rests on four facts. Availability is in the row that is locked. What else decides an order is read after its
organization's row is locked, and every change of it takes that lock too. Rows are locked in one order everywhere. Only
what COMMIT has confirmed is returned.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from psycopg import Error, InternalError
from psycopg.errors import LockNotAvailable, QueryCanceled

from server.messages import order_response
from server.rules.ordering import decide
from server.rules.values import (
    Account,
    Campaign,
    Decision,
    KeyGrant,
    Number,
    Order,
    Placed,
    Routing,
    State,
    StoredResponse,
)
from server.store.connection import DatabaseAway, PipelinedConnection, Result
from server.store.statements import BoundStatement, JsonRows, Statement, array, load, milliseconds

BEGIN, COMMIT = load("session", "begin"), load("session", "commit")
LIMIT_TRANSACTION = load("order", "limit_transaction")
LOCK_NUMBERS = load("order", "lock_numbers")
LOCK_NUMBERS_WITHOUT_RESPONSE = load("order", "lock_numbers_without_response")
LOCK_ORGANIZATIONS = load("order", "lock_organizations")
LOCKING = (LOCK_NUMBERS, LOCK_NUMBERS_WITHOUT_RESPONSE, LOCK_ORGANIZATIONS)
SKIPPING = {statement: statement.skipping_locked() for statement in LOCKING}
READ_EXISTING_NUMBERS = load("order", "read_existing_numbers")
READ_KEYS = load("order", "read_keys")
READ_CAMPAIGNS = load("order", "read_campaigns")
READ_STORED_RESPONSES = load("order", "read_stored_responses")
FIND_ORDER = load("order", "find_order")
WRITE = load("order", "write")
STORE_RESPONSES = load("idempotency", "store_responses")
CLAIM_KEY = load("idempotency", "claim_key")
RELEASE_KEY = load("idempotency", "release_key")

STATEMENTS = (
    *(BEGIN, COMMIT, LIMIT_TRANSACTION, *LOCKING, *SKIPPING.values()),
    *(READ_EXISTING_NUMBERS, READ_KEYS, READ_CAMPAIGNS, READ_STORED_RESPONSES, FIND_ORDER),
    *(WRITE, STORE_RESPONSES, CLAIM_KEY, RELEASE_KEY),
)
"""What a connection for orders prepares."""


class _Stored(NamedTuple):
    """A row to store under an idempotency key. Bytes are texts that PostgreSQL reads as bytea."""

    order: Order
    fingerprint: str
    response: str


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
STORED_ROWS = JsonRows(
    STORE_RESPONSES,
    "responses",
    organization_id="order.organization_id",
    key="order.idempotency.key",
    order_id="order.id",
)


class _KeyedNumber(NamedTuple):
    """A number of an order, with the order's idempotency key, if it has one."""

    number: str
    organization_id: str
    key: str | None


WANTED_ROWS = JsonRows(LOCK_NUMBERS_WITHOUT_RESPONSE, "wanted")
KEY_ROWS = JsonRows(READ_STORED_RESPONSES, "keys", key="idempotency.key")


class Limits(NamedTuple):
    """How long a transaction may wait for a lock, and how long each of its statements may take."""

    lock_seconds: float
    statement_seconds: float

    def statement(self) -> BoundStatement:
        return LIMIT_TRANSACTION(
            lock_timeout=milliseconds(self.lock_seconds * 1000),
            statement_timeout=milliseconds(self.statement_seconds * 1000),
        )


class OutcomeUnknown(Exception):
    """A COMMIT was sent, and it is not certain that it lasts. These orders may have been carried out."""

    def __init__(self, placed: Sequence[Placed]) -> None:
        super().__init__(f"{len(placed)} orders")
        self.placed = placed


class InProgress(Exception):
    """Another transaction is using the same idempotency key. This one did nothing."""


async def place(
    connection: PipelinedConnection, orders: Sequence[Order], limits: Limits, *, skip_locked: bool = False
) -> list[Decision]:
    """Carry out a batch in one transaction, as far as it can be. Return the decision on each order.

    With `skip_locked` an order is decided as Retry when another transaction has locked a row of it. Otherwise that
    raises LockNotAvailable.

    Raises OutcomeUnknown if the orders may have been carried out. After any other error (psycopg.Error, DatabaseAway)
    they certainly were not, and the connection needs a rollback.
    """
    begin = {"begin": BEGIN(), "limit": limits.statement()}
    results = await _run(connection, begin | _reads(orders, skip_locked=skip_locked))
    decisions = decide(orders, _state(orders, results))
    await _finish(connection, decisions)
    return decisions


async def place_alone(
    connection: PipelinedConnection, order: Order, limits: Limits, sent: Placed | None = None
) -> Decision:
    """As `place`, for one order that its batch could not decide. It claims its idempotency key first.

    `sent` is what an earlier attempt has sent, whose outcome is unknown.

    Raises InProgress, too.
    """
    begin = {"begin": BEGIN(), "limit": limits.statement()}
    is_claimed = False
    if order.idempotency:
        is_claimed = await _claim(connection, begin, order)
        begin = {}
    reads = _reads([order], is_claimed=is_claimed)
    if sent:
        # This attempt waited for the earlier one's locks. So either the order is there now, or it never will be.
        reads["found"] = FIND_ORDER(organization_id=order.organization_id, id=order.id)
    results = await _run(connection, begin | reads)
    release = [_key_statement(RELEASE_KEY, order)] if is_claimed else []
    if sent and results["found"].rows:
        # Commit even if nothing is written: a standby that has our commit has the earlier one too.
        await _finish(connection, [], release)
        return sent
    (decision,) = decide([order], _state([order], results))
    await _finish(connection, [decision], release)
    return decision


async def _run(connection: PipelinedConnection, statements: dict[str, BoundStatement]) -> dict[str, Result]:
    return dict(zip(statements, await connection.run(*statements.values()), strict=True))


async def _claim(connection: PipelinedConnection, begin: dict[str, BoundStatement], order: Order) -> bool:
    """Whether the key was free and is now locked by this transaction. Raises InProgress."""
    claim = _key_statement(CLAIM_KEY, order, order_id=order.id)
    try:
        results = await _run(connection, begin | {"claim": claim})
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
        "keys": READ_KEYS(api_key_ids=array([order.api_key_id for order in orders])),
    }
    if keyed:
        reads["stored_responses"] = READ_STORED_RESPONSES(keys=KEY_ROWS.json(keyed))
    if keyed or skip_locked:
        reads["existing"] = READ_EXISTING_NUMBERS(numbers=numbers)
    if campaign_ids := [id_ for order in orders if (id_ := order.routing.campaign_id)]:
        reads["campaigns"] = READ_CAMPAIGNS(campaign_ids=array(campaign_ids))
    return reads


def _wanted(orders: Sequence[Order]) -> list[_KeyedNumber]:
    return [
        _KeyedNumber(number, order.organization_id, order.idempotency.key if order.idempotency else None)
        for order in orders
        for number in order.numbers
    ]


def _state(orders: Sequence[Order], results: dict[str, Result]) -> State:
    rows = {name: result.rows for name, result in results.items()}
    keys = rows["keys"]
    numbers = {row[0]: Number(*row[1:]) for row in rows["numbers"]}
    accounts = {row[0]: Account(*row[1:]) for row in rows["accounts"]}
    locked_elsewhere: set[str] = set()
    if "existing" in rows:
        # What exists and was not locked here is locked by another transaction, so nothing is known about it.
        locked_elsewhere = {number for (number,) in rows["existing"]} - numbers.keys()
        locked_elsewhere |= {order.organization_id for order in orders} - accounts.keys()
    return State(
        now=keys[0][0] if keys else datetime.now(UTC),  # without a key nothing is placed, whatever the time
        numbers=numbers,
        accounts=accounts,
        keys={row[1]: KeyGrant(*row[2:]) for row in keys},
        campaigns={(row[0], row[1]): Campaign(*row[2:]) for row in rows.get("campaigns", ())},
        stored_responses={(row[0], row[1]): StoredResponse(*row[2:]) for row in rows.get("stored_responses", ())},
        locked_elsewhere=frozenset(locked_elsewhere),
    )


async def _finish(
    connection: PipelinedConnection, decisions: Sequence[Decision], before: Sequence[BoundStatement] = ()
) -> None:
    """Round trip 2: write what was placed, and commit."""
    placed = [decision for decision in decisions if isinstance(decision, Placed)]
    statements = [*before, *_writes(placed), COMMIT()]
    try:
        *_, commit = await connection.run(*statements)
    except BaseException as error:
        if _is_rolled_back(error):
            raise
        # Also without a write. Row locks are logged too, so this COMMIT may wait for a standby and keep its locks.
        raise OutcomeUnknown(placed) from error
    if commit.tag == "ROLLBACK":  # PostgreSQL reports that for the COMMIT of an aborted transaction
        raise InternalError("COMMIT was answered with ROLLBACK")
    # The warning: a cancelled wait for the standby. The primary has the transaction, and perhaps no other server.
    if commit.tag != "COMMIT" or connection.was_warned:
        raise OutcomeUnknown(placed)


def _writes(placed: Sequence[Placed]) -> list[BoundStatement]:
    if not placed:
        return []
    sold_at = placed[0].at.isoformat()
    writes = [WRITE(placed=PLACED_ROWS.json(placed), sold_at=sold_at)]
    if keyed := [_stored(each.order, order_response(each)) for each in placed if each.order.idempotency]:
        writes.append(STORE_RESPONSES(responses=STORED_ROWS.json(keyed), sold_at=sold_at))
    return writes


def _stored(order: Order, response: bytes) -> _Stored:
    assert order.idempotency  # noqa: S101
    return _Stored(order, f"\\x{order.idempotency.fingerprint.hex()}", f"\\x{response.hex()}")


def _is_rolled_back(error: BaseException) -> bool:
    """Whether the server itself has refused a statement, and so has rolled the transaction back."""
    if isinstance(error, DatabaseAway):
        return error.rolled_back
    return isinstance(error, Error) and error.sqlstate is not None
