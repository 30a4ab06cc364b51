"""The order transaction: a batch of orders, locked, read, decided and written in two round trips to the database.

What it rests on: availability lives in the very row that is locked; keys, campaigns and brands are read after their
organization's row is locked, in statements of their own, and every change of them updates that row first; rows are
locked in one order everywhere (numbers, then organizations). Only what COMMIT has confirmed is returned.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Error, InternalError
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import distinct_on

from server.ordering import Account, Campaign, Decision, Key, Number, Order, Placed, State, decide
from server.store.pipeline import PipelinedConnection, Statement
from server.store.tables import Instant, api_key, assignment, brand, campaign, ledger_entry, organization, phone_number
from server.store.tables import orders as orders_table

# ---------------------------------------------------------------- reading, under locks

_n, _o, _k, _c, _b = phone_number.c, organization.c, api_key.c, campaign.c, brand.c


def _in(of: Any, name: str, type_: Any) -> Any:
    return of == any_(cast(bindparam(name, type_=Text), ARRAY(type_)))


BEGIN = Statement("begin", "BEGIN ISOLATION LEVEL READ COMMITTED")
COMMIT = Statement("commit", "COMMIT")
LOCK_NUMBERS = Statement(
    "lock_numbers",
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
    .where(_in(_n.number, "numbers", Text))
    .order_by(_n.number)
    .with_for_update(key_share=True),
)
LOCK_ORGANIZATIONS = Statement(
    "lock_organizations",
    select(cast(_o.id, Text), _o.balance_micros, _o.entry_no)
    .where(_in(_o.id, "organization_ids", Uuid))
    .order_by(_o.id)
    .with_for_update(key_share=True),
)
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

# ---------------------------------------------------------------- writing, in one statement

# A placed order as the JSON that the write takes. One JSON text costs half of what arrays of its columns did.
PLACED: dict[str, Any] = {
    "organization_id": Uuid,
    "id": Uuid,
    "api_key_id": Uuid,
    "request_id": Text,
    "total_micros": BigInteger,
    "entry_no": BigInteger,
    "balance_micros": BigInteger,
    "at": Instant,
    "inbound_url": Text,
    "status_url": Text,
    "label": Text,
    "campaign_id": Uuid,
    "numbers": ARRAY(Text),
    "assignment_ids": ARRAY(Uuid),
}


# Of these, what is the same for all numbers of an order and kept with each.
TOLD = ("inbound_url", "status_url", "label", "campaign_id")


def _as_json(placed: Placed) -> dict[str, Any]:
    order = placed.order
    return {
        "organization_id": order.organization_id,
        "id": order.id,
        "api_key_id": order.api_key_id,
        "request_id": order.request_id,
        "total_micros": placed.total_micros,
        "entry_no": placed.account.entry_no,
        "balance_micros": placed.account.balance_micros,
        "at": placed.at.isoformat(),
        "inbound_url": order.inbound_url,
        "status_url": order.status_url,
        "label": order.label,
        "campaign_id": order.campaign_id,
        "numbers": order.numbers,
        "assignment_ids": order.assignment_ids,
    }


def _write() -> Any:
    """What was placed, into every table that tells of it: each is touched once."""
    rows = func.json_to_recordset(cast(bindparam("placed", type_=Text), JSON))
    columns = (column(name, of) for name, of in PLACED.items())
    placed = select(rows.table_valued(*columns).render_derived("ordered", with_types=True)).cte("placed")
    p = placed.c
    numbers = func.unnest(p.assignment_ids, p.numbers).table_valued(column("id", Uuid), column("number", Text))
    t = numbers.render_derived("taken").c
    taken = (
        select(p.organization_id, t.id, p.id.label("order_id"), t.number, p.at, *(p[name] for name in TOLD))
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
    new_orders = insert(orders_table).from_select(
        ["organization_id", "id", "api_key_id", "request_id", "total_micros", "created_at"],
        select(p.organization_id, p.id, p.api_key_id, p.request_id, p.total_micros, p.at),
    )
    new_assignments = insert(assignment).from_select(
        ["organization_id", "id", "order_id", "number", "created_at", "updated_at", *TOLD],
        select(t.organization_id, t.id, t.order_id, t.number, t.at, t.at, *(t[name] for name in TOLD)),
    )
    new_entries = insert(ledger_entry).from_select(
        ["organization_id", "entry_no", "kind", "amount_micros", "balance_micros", "order_id", "created_at"],
        select(p.organization_id, p.entry_no, literal_column("'order'"), -p.total_micros, p.balance_micros, p.id, p.at),
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


WRITE = Statement("write", _write())

STATEMENTS = (BEGIN, COMMIT, LOCK_NUMBERS, LOCK_ORGANIZATIONS, READ_KEYS, READ_CAMPAIGNS, WRITE)

# ---------------------------------------------------------------- the transaction


class OutcomeUnknown(Exception):
    """Nobody heard what became of a write that was sent: its orders may have been carried out."""


async def place(connection: PipelinedConnection, orders: Sequence[Order]) -> list[Decision]:
    """Carry out what can be carried out of a batch, in one transaction, and say what became of each order.

    Raises OutcomeUnknown if the orders may have been carried out; whatever else it raises, they certainly were not,
    and the connection wants a rollback.
    """
    decisions = decide(orders, await _read(connection, orders))
    placed = [decision for decision in decisions if isinstance(decision, Placed)]
    try:
        await _finish(connection, placed)
    except (Error, asyncio.CancelledError) as error:
        answered = isinstance(error, Error) and error.sqlstate is not None and not connection.is_broken
        if placed and not answered:
            raise OutcomeUnknown from error
        raise
    return decisions


async def _read(connection: PipelinedConnection, orders: Sequence[Order]) -> State:
    """Round trip 1. What has no row here does not exist."""
    campaign_ids = {order.campaign_id for order in orders if order.campaign_id}
    calls = [
        BEGIN(),
        LOCK_NUMBERS(numbers=_array(number for order in orders for number in order.numbers)),
        LOCK_ORGANIZATIONS(organization_ids=_array(order.organization_id for order in orders)),
        READ_KEYS(api_key_ids=_array(order.api_key_id for order in orders)),
    ]
    if campaign_ids:
        calls.append(READ_CAMPAIGNS(campaign_ids=_array(campaign_ids)))
    _, numbers, accounts, keys, *campaigns = [result.rows for result in await connection.run(*calls)]
    return State(
        now=keys[0][0] if keys else datetime.now(UTC),  # without a key nothing is placed, whatever the time
        numbers={row[0]: Number(*row[1:]) for row in numbers},
        accounts={row[0]: Account(*row[1:]) for row in accounts},
        keys={row[1]: Key(*row[2:]) for row in keys},
        campaigns={(row[0], row[1]): Campaign(*row[2:]) for rows in campaigns for row in rows},
    )


async def _finish(connection: PipelinedConnection, placed: Sequence[Placed]) -> None:
    """Round trip 2. COMMIT also when nothing is written: there is nothing to roll back."""
    calls = [WRITE(placed=json.dumps([_as_json(p) for p in placed]))] if placed else []
    *_, commit = await connection.run(*calls, COMMIT())
    if commit.tag != "COMMIT":  # an aborted transaction answers ROLLBACK, and no error
        raise InternalError(f"COMMIT was answered with {commit.tag}")


def _array(texts: Iterable[str]) -> str:
    """PostgreSQL's text for an array of numbers or ids, each once, in order; they need no quoting."""
    return "{" + ",".join(sorted(set(texts))) + "}"
