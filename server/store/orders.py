"""The order transaction: a batch of orders, locked, read, decided and written in two round trips to the database.

What it rests on: availability lives in the very row that is locked; keys, campaigns, brands and idempotency keys are
read after their organization's row is locked, in statements of their own, and every change of them has that lock too;
rows are locked in one order everywhere (claims of idempotency keys, numbers, organizations). Only what COMMIT has
confirmed is returned.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from psycopg import Error, InternalError
from psycopg.errors import LockNotAvailable, QueryCanceled
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    LargeBinary,
    Table,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    column,
    delete,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import distinct_on, insert

from server.rules.ordering import decide
from server.rules.values import Account, Campaign, Decision, Key, Number, Order, Placed, State, StoredResponse
from server.store.connection import Call, DatabaseAway, PipelinedConnection, Result, Statement
from server.store.tables import (
    Instant,
    api_key,
    assignment,
    brand,
    campaign,
    idempotency_key,
    ledger_entry,
    organization,
    phone_number,
)
from server.store.tables import orders as orders_table

AnswerOf = Callable[[Placed], bytes]
"""The answer to an order that was placed, as its idempotency key keeps it."""

_n, _o, _k, _c, _b, _i = phone_number.c, organization.c, api_key.c, campaign.c, brand.c, idempotency_key.c

BEGIN = Statement("begin", "BEGIN ISOLATION LEVEL READ COMMITTED")
COMMIT = Statement("commit", "COMMIT")
# The database may have synchronous_commit off, from one moment to the next: a crash would lose an acknowledged order.
LIMIT = Statement(
    "limit",
    """
    SELECT
      set_config('lock_timeout', $1, true),
      set_config('statement_timeout', $2, true),
      set_config('synchronous_commit', CASE durable WHEN 'off' THEN 'on' ELSE durable END, true)
    FROM current_setting('synchronous_commit') AS durable
    """,
    ("lock", "statement"),
)

# ---------------------------------------------------------------- reading, under locks


def _in(of: Any, name: str, type_: Any) -> Any:
    return of == any_(cast(bindparam(name, type_=Text), ARRAY(type_)))


def _rows_of(parameter: str, **columns: Any) -> Any:
    """Rows out of a JSON text: half the cost of an array for each column."""
    rows = func.json_to_recordset(cast(bindparam(parameter, type_=Text), JSON))
    typed = (column(name, of) for name, of in columns.items())
    return rows.table_valued(*typed).render_derived(f"{parameter}_row", with_types=True)


_json = json.JSONEncoder(check_circular=False).encode


class Rows:
    """The rows that one parameter of a statement holds: each column's type, and where its value is in what a row is
    made of. Statement and JSON are both made of this list, so neither can lack a column.
    """

    def __init__(self, parameter: str, **columns: tuple[Any, str]) -> None:
        self._parameter = parameter
        self._types = {name: type_ for name, (type_, _) in columns.items()}
        self._values = attrgetter(*(path for _, path in columns.values()))

    def table(self) -> Any:
        """For the statement."""
        return _rows_of(self._parameter, **self._types)

    def json(self, rows: Iterable[Any]) -> str:
        """For the parameter."""
        return _json([dict(zip(self._types, values, strict=False)) for values in map(self._values, rows)])


def _lock_numbers(wanted: Any, *, skip_locked: bool) -> Any:
    return (
        select(
            _n.number,
            _n.number_type,
            _n.sms_enabled,
            _n.mms_enabled,
            _n.price_micros,
            cast(_n.assignment_id, Text),
            cast(_n.held_by, Text),
            _n.free_at,
        )
        .where(wanted)
        .order_by(_n.number)
        .with_for_update(key_share=True, skip_locked=skip_locked)
    )


def _lock_organizations(*, skip_locked: bool) -> Any:
    return (
        select(cast(_o.id, Text), _o.balance_micros, _o.entry_no)
        .where(_in(_o.id, "organization_ids", Uuid))
        .order_by(_o.id)
        .with_for_update(key_share=True, skip_locked=skip_locked)
    )


def _unanswered() -> Any:
    """Of the numbers wanted, those of orders without an idempotency key, or with one that is not known yet."""
    wanted = _rows_of("wanted", number=Text, organization_id=Uuid, key=Text)
    w = wanted.c
    known = select(1).where(_i.organization_id == w.organization_id, _i.key == w.key).exists()
    return _n.number.in_(select(w.number).select_from(wanted).where(or_(w.key.is_(None), not_(known))))


# By whether locked rows are skipped, or waited for.
LOCK_NUMBERS, LOCK_UNANSWERED, LOCK_ORGANIZATIONS = (
    {skip: Statement(f"{name}_skipping" if skip else name, lock(skip_locked=skip)) for skip in (False, True)}
    for name, lock in (
        ("lock_numbers", partial(_lock_numbers, _in(_n.number, "numbers", Text))),
        ("lock_unanswered", partial(_lock_numbers, _unanswered())),
        ("lock_organizations", _lock_organizations),
    )
)
READ_EXISTING = Statement("read_existing", select(_n.number).where(_in(_n.number, "numbers", Text)))
# clock_timestamp(), since now() is when the transaction began: before it had its locks.
READ_KEYS = Statement(
    "read_keys",
    select(func.clock_timestamp(), cast(_k.id, Text), _k.scopes, _k.expires_at, _k.revoked_at).where(
        _in(_k.id, "api_key_ids", Uuid)
    ),
)
READ_CAMPAIGNS = Statement(
    "read_campaigns",
    select(cast(_c.organization_id, Text), cast(_c.id, Text), _c.status, _b.identity_status)
    .select_from(campaign.outerjoin(brand, _b.id == _c.brand_id))
    .where(_in(_c.id, "campaign_ids", Uuid)),
)
_claims = _rows_of("claims", organization_id=Uuid, key=Text)
READ_REMEMBERED = Statement(
    "read_remembered",
    select(cast(_i.organization_id, Text), _i.key, _i.fingerprint, _i.answer)
    .select_from(_claims)
    .join(idempotency_key, (_i.organization_id == _claims.c.organization_id) & (_i.key == _claims.c.key)),
)
FIND_ORDER = Statement(
    "find_order",
    select(1)
    .select_from(orders_table)
    .where(
        orders_table.c.organization_id == cast(bindparam("organization_id", type_=Text), Uuid),
        orders_table.c.id == cast(bindparam("id", type_=Text), Uuid),
    ),
)

# ---------------------------------------------------------------- writing what was placed

# What is the same for all numbers of an order, and kept with each of them.
TOLD: dict[str, Any] = {"inbound_url": Text, "status_url": Text, "label": Text, "campaign_id": Uuid}
PLACED = Rows(
    "placed",
    organization_id=(Uuid, "order.organization_id"),
    id=(Uuid, "order.id"),
    api_key_id=(Uuid, "order.api_key_id"),
    request_id=(Text, "order.request_id"),
    total_micros=(BigInteger, "total_micros"),
    entry_no=(BigInteger, "account.entry_no"),
    balance_micros=(BigInteger, "account.balance_micros"),
    numbers=(ARRAY(Text), "order.numbers"),
    assignment_ids=(ARRAY(Uuid), "order.assignment_ids"),
    prices_micros=(ARRAY(BigInteger), "prices_micros"),
    **{name: (type_, f"order.{name}") for name, type_ in TOLD.items()},
)
"""An order that was placed: a row of a `Placed`."""


def _instant(parameter: str) -> Any:
    return cast(bindparam(parameter, type_=Text), Instant)


def _insert(table: Table, **columns: Any) -> Any:
    return insert(table).from_select(list(columns), select(*columns.values()))


def _write() -> Any:
    """What was placed, into every table that tells of it: each is touched once."""
    placed = select(PLACED.table(), _instant("at").label("at")).cte("placed")
    p = placed.c
    each = (column("id", Uuid), column("number", Text), column("price_micros", BigInteger))
    numbers = func.unnest(p.assignment_ids, p.numbers, p.prices_micros).table_valued(*each)
    t = numbers.render_derived("taken").c
    taken = (
        select(p.organization_id, p.id.label("order_id"), *t, p.at, *(p[name] for name in TOLD))
        .select_from(placed.join(t.id.table, true()))
        .cte("taken")
    )
    t = taken.c
    account = (
        select(p.organization_id, p.entry_no, p.balance_micros)
        .ext(distinct_on(p.organization_id))
        .order_by(p.organization_id, p.entry_no.desc())
        .cte("account")
    )
    new_orders = _insert(
        orders_table,
        organization_id=p.organization_id,
        id=p.id,
        api_key_id=p.api_key_id,
        request_id=p.request_id,
        total_micros=p.total_micros,
        number_count=func.cardinality(p.numbers),
        created_at=p.at,
    )
    new_assignments = _insert(
        assignment,
        organization_id=t.organization_id,
        id=t.id,
        order_id=t.order_id,
        number=t.number,
        price_micros=t.price_micros,
        created_at=t.at,
        updated_at=t.at,
        **{name: t[name] for name in TOLD},
    )
    new_entries = _insert(
        ledger_entry,
        organization_id=p.organization_id,
        entry_no=p.entry_no,
        kind=literal_column("'order'"),
        amount_micros=-p.total_micros,
        balance_micros=p.balance_micros,
        order_id=p.id,
        created_at=p.at,
    )
    charged = (
        update(organization)
        .where(_o.id == account.c.organization_id)
        .values(balance_micros=account.c.balance_micros, entry_no=account.c.entry_no)
    )
    return (
        update(phone_number)
        .where(_n.number == t.number)
        .values(assignment_id=t.id, held_by=null(), free_at=null())
        .add_cte(
            new_orders.cte("new_orders"),
            new_assignments.cte("new_assignments"),
            new_entries.cte("new_entries"),
            charged.cte("charged"),
        )
    )


class Answered(NamedTuple):
    """An order, and what was answered to it. Bytes are as PostgreSQL reads them."""

    order: Order
    fingerprint: str
    answer: str


def _answered(order: Order, answer: bytes) -> Answered:
    assert order.idempotency  # noqa: S101
    return Answered(order, f"\\x{order.idempotency.fingerprint.hex()}", f"\\x{answer.hex()}")


REMEMBERED = Rows(
    "answers",
    organization_id=(Uuid, "order.organization_id"),
    key=(Text, "order.idempotency.key"),
    fingerprint=(LargeBinary, "fingerprint"),
    order_id=(Uuid, "order.id"),
    answer=(LargeBinary, "answer"),
)
"""What is kept under an idempotency key: a row of an `Answered`."""


def _remember() -> Any:
    return _insert(idempotency_key, **dict(REMEMBERED.table().c), created_at=_instant("at"))


WRITE = Statement("write", _write())
REMEMBER = Statement("remember", _remember())
CLAIM = Statement("claim", _remember().on_conflict_do_nothing())
UNCLAIM = Statement(
    "unclaim",
    delete(idempotency_key).where(
        _i.organization_id == cast(bindparam("organization_id", type_=Text), Uuid),
        _i.key == bindparam("key", type_=Text),
    ),
)

STATEMENTS = (
    *(BEGIN, COMMIT, LIMIT),
    *LOCK_NUMBERS.values(),
    *LOCK_UNANSWERED.values(),
    *LOCK_ORGANIZATIONS.values(),
    *(READ_EXISTING, READ_KEYS, READ_CAMPAIGNS, READ_REMEMBERED, FIND_ORDER, WRITE, REMEMBER, CLAIM, UNCLAIM),
)

# ---------------------------------------------------------------- the transaction


class Limits(NamedTuple):
    """How long a transaction may wait for a lock, and how long one of its statements may take."""

    lock_seconds: float
    statement_seconds: float

    def call(self) -> Call:
        return LIMIT(lock=_milliseconds(self.lock_seconds), statement=_milliseconds(self.statement_seconds))


def _milliseconds(seconds: float) -> str:
    return f"{max(1, int(seconds * 1000))}ms"  # 0 would mean no limit


class OutcomeUnknown(Exception):
    """A COMMIT was sent, and it is not certain that it will last: these orders may have been carried out."""

    def __init__(self, placed: Sequence[Placed]) -> None:
        super().__init__(f"{len(placed)} orders")
        self.placed = placed


class InProgress(Exception):
    """Another transaction is at work under the same idempotency key. This one did nothing."""


async def place(
    connection: PipelinedConnection,
    orders: Sequence[Order],
    answer_of: AnswerOf,
    limits: Limits,
    *,
    skip_locked: bool = False,
) -> list[Decision]:
    """Carry out what can be carried out of a batch, in one transaction, and say what became of each order. Orders are
    Busy whose rows somebody else has locked, if locked rows are skipped; otherwise that is LockNotAvailable.

    Raises OutcomeUnknown if the orders may have been carried out. Whatever else it raises (psycopg.Error,
    DatabaseAway), they certainly were not, and the connection wants a rollback.
    """
    calls = {"begin": BEGIN(), "limit": limits.call(), **_reading(orders, skip_locked=skip_locked)}
    decisions = decide(orders, _state(orders, await _run(connection, calls)))
    await _finish(connection, decisions, answer_of)
    return decisions


async def place_alone(
    connection: PipelinedConnection, order: Order, answer_of: AnswerOf, limits: Limits, sent: Placed | None = None
) -> Decision:
    """As `place`, for an order that could not be decided among others. It claims its idempotency key before all else.

    `sent` is what an earlier attempt would have made of it, whose outcome is unknown. Having the same locks, this one
    comes after it: either the order is there, or it never will be.

    Raises InProgress, too.
    """
    calls = {"begin": BEGIN(), "limit": limits.call()}
    claimed = False
    if order.idempotency:
        try:
            claim = (await _run(connection, calls | {"claim": _claim(order)}))["claim"]
        except (LockNotAvailable, QueryCanceled) as error:
            raise InProgress from error
        claimed = claim.tag == "INSERT 0 1"
        calls = {}
    calls |= _reading([order], claimed=claimed)
    if sent:
        calls["found"] = FIND_ORDER(organization_id=order.organization_id, id=order.id)
    results = await _run(connection, calls)
    before = [UNCLAIM(organization_id=order.organization_id, key=order.idempotency.key)] if claimed else []  # type: ignore[union-attr]
    if sent and results["found"].rows:
        await _finish(connection, [], answer_of, before)  # a COMMIT of ours: a standby that has it has theirs too
        return sent
    (decision,) = decide([order], _state([order], results))
    await _finish(connection, [decision], answer_of, before)
    return decision


async def _run(connection: PipelinedConnection, calls: dict[str, Call]) -> dict[str, Result]:
    return dict(zip(calls, await connection.run(*calls.values()), strict=True))


def _claim(order: Order) -> Call:
    return CLAIM(answers=REMEMBERED.json([_answered(order, b"")]), at=datetime.now(UTC).isoformat())


def _reading(orders: Sequence[Order], *, skip_locked: bool = False, claimed: bool = False) -> dict[str, Call]:
    """Round trip 1, in the order of the locks. An order whose idempotency key is `claimed` has the key to itself."""
    numbers = _array(number for order in orders for number in order.numbers)
    claims = [] if claimed else [_key_of(order) for order in orders if order.idempotency]
    calls = {
        "numbers": LOCK_UNANSWERED[skip_locked](wanted=_json([row for order in orders for row in _wanted(order)]))
        if claims
        else LOCK_NUMBERS[skip_locked](numbers=numbers),
        "accounts": LOCK_ORGANIZATIONS[skip_locked](organization_ids=_array(order.organization_id for order in orders)),
        "keys": READ_KEYS(api_key_ids=_array(order.api_key_id for order in orders)),
    }
    if claims:
        calls["remembered"] = READ_REMEMBERED(claims=_json(claims))
    if claims or skip_locked:
        calls["existing"] = READ_EXISTING(numbers=numbers)
    if campaign_ids := {order.campaign_id for order in orders if order.campaign_id}:
        calls["campaigns"] = READ_CAMPAIGNS(campaign_ids=_array(campaign_ids))
    return calls


def _key_of(order: Order) -> dict[str, str | None]:
    return {"organization_id": order.organization_id, "key": order.idempotency.key if order.idempotency else None}


def _wanted(order: Order) -> Iterable[dict[str, str | None]]:
    key = _key_of(order)
    return ({"number": number, **key} for number in order.numbers)


def _state(orders: Sequence[Order], results: dict[str, Result]) -> State:
    """What has no row here does not exist, or is busy."""
    rows = {name: result.rows for name, result in results.items()}
    keys = rows["keys"]
    numbers = {row[0]: Number(*row[1:]) for row in rows["numbers"]}
    accounts = {row[0]: Account(*row[1:]) for row in rows["accounts"]}
    busy: set[str] = set()
    if "existing" in rows:
        busy = {number for (number,) in rows["existing"]} - numbers.keys()
        busy |= {order.organization_id for order in orders} - accounts.keys()
    return State(
        now=keys[0][0] if keys else datetime.now(UTC),  # without a key nothing is placed, whatever the time
        numbers=numbers,
        accounts=accounts,
        keys={row[1]: Key(*row[2:]) for row in keys},
        campaigns={(row[0], row[1]): Campaign(*row[2:]) for row in rows.get("campaigns", ())},
        stored={(row[0], row[1]): StoredResponse(*row[2:]) for row in rows.get("remembered", ())},
        busy=frozenset(busy),
    )


async def _finish(
    connection: PipelinedConnection, decisions: Sequence[Decision], answer_of: AnswerOf, before: Sequence[Call] = ()
) -> None:
    """Round trip 2. COMMIT also when nothing is written: there is nothing to roll back."""
    placed = [decision for decision in decisions if isinstance(decision, Placed)]
    calls = list(before)
    if placed:
        at = placed[0].at.isoformat()
        calls.append(WRITE(placed=PLACED.json(placed), at=at))
        if keyed := [p for p in placed if p.order.idempotency]:
            answers = REMEMBERED.json(_answered(p.order, answer_of(p)) for p in keyed)
            calls.append(REMEMBER(answers=answers, at=at))
    try:
        *_, commit = await connection.run(*calls, COMMIT())
    except BaseException as error:
        if _is_certain(error):
            raise
        # Also without a write: row locks are in the log too, so this COMMIT may wait for a standby and keep its locks.
        raise OutcomeUnknown(placed) from error
    if commit.tag == "ROLLBACK":  # that is how an aborted transaction answers, without an error
        raise InternalError("COMMIT was answered with ROLLBACK")
    # A warning: the wait for the standby was cancelled. The primary has the transaction, perhaps no other server.
    if commit.tag != "COMMIT" or connection.was_warned:
        raise OutcomeUnknown(placed)


def _is_certain(error: BaseException) -> bool:
    """Whether the server itself has refused a statement, and so rolls the transaction back."""
    if isinstance(error, DatabaseAway):
        return error.answered
    return isinstance(error, Error) and error.sqlstate is not None


def _array(texts: Iterable[str]) -> str:
    """PostgreSQL's text for an array of numbers or ids, each once, in order; they need no quoting."""
    return "{" + ",".join(sorted(set(texts))) + "}"
