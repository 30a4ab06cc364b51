"""The order transaction: a batch of orders, locked, read, decided and written in two round trips to the database.

What it rests on: availability lives in the very row that is locked; keys, campaigns and brands are read after their
organization's row is locked, in statements of their own, and every change of them updates that row first; rows are
locked in one order everywhere (numbers, then organizations). Only what COMMIT has confirmed is returned.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Error, InternalError
from sqlalchemy import (
    ARRAY,
    BigInteger,
    TableValuedAlias,
    Text,
    Uuid,
    any_,
    bindparam,
    column,
    func,
    insert,
    literal_column,
    null,
    select,
    update,
)

from server.ordering import Account, Campaign, Decision, Key, Number, Order, Placed, State, decide
from server.store.engine import compiled
from server.store.tables import Instant, api_key, assignment, brand, campaign, ledger_entry, organization, phone_number
from server.store.tables import orders as orders_table


def _array(name: str, of: Any) -> Any:
    return bindparam(name, type_=ARRAY(of))


# ---------------------------------------------------------------- reading, under locks

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"

_n, _o, _k, _c, _b = phone_number.c, organization.c, api_key.c, campaign.c, brand.c

LOCK_NUMBERS = compiled(
    select(
        _n.number,
        _n.number_type,
        _n.sms_enabled,
        _n.mms_enabled,
        _n.price_micros,
        _n.assignment_id,
        _n.held_by,
        _n.free_at,
    )
    .where(_n.number == any_(_array("numbers", Text)))
    .order_by(_n.number)
    .with_for_update(key_share=True)
)
LOCK_ORGANIZATIONS = compiled(
    select(_o.id, _o.balance_micros, _o.entry_no)
    .where(_o.id == any_(_array("organization_ids", Uuid)))
    .order_by(_o.id)
    .with_for_update(key_share=True)
)
# clock_timestamp(), since now() is when the transaction began: before it had its locks.
READ_KEYS = compiled(
    select(func.clock_timestamp(), _k.id, _k.scopes, _k.expires_at, _k.revoked_at).where(
        _k.id == any_(_array("api_key_ids", Uuid))
    )
)
READ_CAMPAIGNS = compiled(
    select(_c.organization_id, _c.id, _c.status, _b.identity_status)
    .select_from(campaign.outerjoin(brand, _b.id == _c.brand_id))
    .where(_c.id == any_(_array("campaign_ids", Uuid)))
)

# ---------------------------------------------------------------- writing, in one statement


def _rows(alias: str, **types: Any) -> TableValuedAlias:
    """Arrays of equal length as rows: unnest(%(alias_a)s, %(alias_b)s, …) AS alias (a, b, …)."""
    arrays = (_array(f"{alias}_{name}", of) for name, of in types.items())
    columns = (column(name, of) for name, of in types.items())
    return func.unnest(*arrays).table_valued(*columns).render_derived(name=alias)


def _write() -> str:
    at: Any = bindparam("at", type_=Instant)
    placed = _rows(
        "placed",
        organization_id=Uuid,
        id=Uuid,
        api_key_id=Uuid,
        request_id=Text,
        total_micros=BigInteger,
        entry_no=BigInteger,
        balance_micros=BigInteger,
    )
    taken = _rows(
        "taken",
        organization_id=Uuid,
        id=Uuid,
        order_id=Uuid,
        number=Text,
        inbound_url=Text,
        status_url=Text,
        label=Text,
        campaign_id=Uuid,
    )
    account = _rows("account", id=Uuid, balance_micros=BigInteger, entry_no=BigInteger)
    p, t, a = placed.c, taken.c, account.c
    new_orders = insert(orders_table).from_select(
        ["organization_id", "id", "api_key_id", "request_id", "total_micros", "created_at"],
        select(p.organization_id, p.id, p.api_key_id, p.request_id, p.total_micros, at),
    )
    new_assignments = insert(assignment).from_select(
        [*(c.name for c in t), "created_at", "updated_at"],
        select(*t, at, at),
    )
    new_entries = insert(ledger_entry).from_select(
        ["organization_id", "entry_no", "kind", "amount_micros", "balance_micros", "order_id", "created_at"],
        select(p.organization_id, p.entry_no, literal_column("'order'"), -p.total_micros, p.balance_micros, p.id, at),
    )
    charged = update(organization).where(_o.id == a.id).values(balance_micros=a.balance_micros, entry_no=a.entry_no)
    sold = (
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
    return compiled(sold)


WRITE = _write()


def _columns(alias: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Rows as the arrays that `_rows` takes."""
    return {f"{alias}_{name}": list(map(itemgetter(i), rows)) for i, name in enumerate(names)}


def _written(placed: Sequence[Placed]) -> dict[str, Any]:
    accounts = {p.order.organization_id: p.account for p in placed}
    return {
        "at": placed[0].at,
        **_columns(
            "placed",
            ("organization_id", "id", "api_key_id", "request_id", "total_micros", "entry_no", "balance_micros"),
            [
                (
                    p.order.organization_id,
                    p.order.id,
                    p.order.api_key_id,
                    p.order.request_id,
                    p.total_micros,
                    p.account.entry_no,
                    p.account.balance_micros,
                )
                for p in placed
            ],
        ),
        **_columns(
            "taken",
            ("organization_id", "id", "order_id", "number", "inbound_url", "status_url", "label", "campaign_id"),
            [
                (o.organization_id, id_, o.id, number, o.inbound_url, o.status_url, o.label, o.campaign_id)
                for o in (p.order for p in placed)
                for id_, number in zip(o.assignment_ids, o.numbers, strict=True)
            ],
        ),
        **_columns(
            "account",
            ("id", "balance_micros", "entry_no"),
            [(id_, account.balance_micros, account.entry_no) for id_, account in accounts.items()],
        ),
    }


# ---------------------------------------------------------------- the transaction


class OutcomeUnknown(Exception):
    """Nobody heard what became of a write that was sent: its orders may have been carried out."""


async def place(connection: AsyncConnection, orders: Sequence[Order]) -> list[Decision]:
    """Carry out what can be carried out of a batch, in one transaction, and say what became of each order.

    The connection is in autocommit mode. Raises OutcomeUnknown if the orders may have been carried out; whatever else
    it raises, they certainly were not, and the connection wants a rollback.
    """
    decisions = decide(orders, await _read(connection, orders))
    placed = [decision for decision in decisions if isinstance(decision, Placed)]
    try:
        await _finish(connection, placed)
    except (Error, asyncio.CancelledError) as error:
        answered = isinstance(error, Error) and error.sqlstate is not None and not connection.closed
        if placed and not answered:
            raise OutcomeUnknown from error
        raise
    return decisions


async def _read(connection: AsyncConnection, orders: Sequence[Order]) -> State:
    """Round trip 1. What has no row here does not exist."""
    numbers = sorted({number for order in orders for number in order.numbers})
    organizations = sorted({order.organization_id for order in orders})
    keys = list({order.api_key_id for order in orders})
    campaigns = list({order.campaign_id for order in orders if order.campaign_id})
    async with connection.pipeline():
        await connection.execute(BEGIN)
        locked = await _execute(connection, LOCK_NUMBERS, numbers=numbers)
        accounts = await _execute(connection, LOCK_ORGANIZATIONS, organization_ids=organizations)
        key_rows = await _execute(connection, READ_KEYS, api_key_ids=keys)
        campaign_rows = await _execute(connection, READ_CAMPAIGNS, campaign_ids=campaigns) if campaigns else None
    found = await key_rows.fetchall()
    campaign_found = await campaign_rows.fetchall() if campaign_rows else []
    return State(
        now=found[0][0] if found else datetime.now(UTC),  # without a key nothing is placed, whatever the time
        numbers={row[0]: Number(*row[1:]) for row in await locked.fetchall()},
        accounts={row[0]: Account(*row[1:]) for row in await accounts.fetchall()},
        keys={row[1]: Key(*row[2:]) for row in found},
        campaigns={(row[0], row[1]): Campaign(*row[2:]) for row in campaign_found},
    )


async def _finish(connection: AsyncConnection, placed: Sequence[Placed]) -> None:
    """Round trip 2. COMMIT also when nothing is written: a ROLLBACK would drop the prepared statements."""
    async with connection.pipeline():
        if placed:
            await _execute(connection, WRITE, **_written(placed))
        commit = await connection.execute("COMMIT")
    if commit.statusmessage != "COMMIT":  # an aborted transaction answers ROLLBACK, and no error
        raise InternalError(f"COMMIT was answered with {commit.statusmessage}")


async def _execute(connection: AsyncConnection, statement: str, **parameters: Any) -> AsyncCursor[tuple[Any, ...]]:
    cursor: AsyncCursor[tuple[Any, ...]] = connection.cursor(binary=True)
    return await cursor.execute(statement, parameters, prepare=True)
