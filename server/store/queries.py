"""What an organization reads. Each statement looks at the caller's key, and returns no row if the key is not valid."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple
from uuid import UUID

from server.errors import Code, Refusal
from server.rules.access import scope_refusal
from server.rules.ordering import decide
from server.rules.values import AssignedNumber, Decision, Held, Id, Order
from server.store import state
from server.store.connection import Result, Row
from server.store.statements import BoundStatement, array, load

LIST_NUMBERS = load("query", "list_numbers")
GET_NUMBER = load("query", "get_number")
GET_ORDER = load("query", "get_order")
GET_HOLD = load("query", "get_hold")
READ_NUMBERS = load("query", "read_numbers")
READ_ACCOUNT = load("query", "read_account")
STATEMENTS = (LIST_NUMBERS, GET_NUMBER, GET_ORDER, GET_HOLD, READ_NUMBERS, READ_ACCOUNT, *state.STATEMENTS)

_AFTER_ALL_IDS = str(UUID(int=2**128 - 1))


class Caller(NamedTuple):
    """Who reads, with which key, and the scope that it needs."""

    organization_id: Id
    api_key_id: Id
    scope: str


class Page(NamedTuple):
    """Which part of a list is wanted. Absent filters are empty texts."""

    limit: int
    cursor: str
    number_type: str
    campaign_id: str
    search: str


class EarlierOrder(NamedTuple):
    """An order, and its numbers as they were in its response. `quantity` is None if it was not a bulk order."""

    id: Id
    quantity: int | None
    numbers: list[AssignedNumber]


def rows_for(caller: Caller, result: Result) -> list[Row]:
    """The rows that a read has found, without the scopes. Raises UNAUTHORIZED and FORBIDDEN."""
    if not result.rows:
        raise Refusal(Code.UNAUTHORIZED)
    refusal = scope_refusal(caller.scope, result.rows[0][0])
    if refusal:
        raise refusal
    return [row[1:] for row in result.rows if row[1] is not None]


def list_numbers(caller: Caller, page: Page) -> BoundStatement:
    """Reads one number more than the page has, if there is one. Raises VALIDATION_FAILED for an impossible cursor."""
    return LIST_NUMBERS(
        **_caller(caller),
        before=_id_of(page.cursor) if page.cursor else _AFTER_ALL_IDS,
        number_type=page.number_type,
        campaign_id=page.campaign_id,
        search=page.search,
        rows=str(page.limit + 1),
    )


def get_number(caller: Caller, id_: Id) -> BoundStatement:
    return GET_NUMBER(**_caller(caller), id=id_)


def get_hold(caller: Caller, id_: Id) -> BoundStatement:
    return GET_HOLD(**_caller(caller), id=id_)


def get_order(caller: Caller, *, id_: Id = "", idempotency_key: str = "") -> BoundStatement:
    return GET_ORDER(**_caller(caller), id=id_, key=idempotency_key)


def preview(order: Order) -> dict[str, BoundStatement]:
    """What an order reads, without its locks. The key is read last: if it is valid then, it was valid before."""
    campaign_id = order.routing.campaign_id
    return {
        "numbers": READ_NUMBERS(numbers=array(order.numbers)),
        "accounts": READ_ACCOUNT(organization_id=order.organization_id),
        **dict(reversed(state.reads([order], [], [campaign_id]).items())),
    }


def decided(order: Order, results: dict[str, Result]) -> Decision:
    """The decision on an order that is only checked."""
    (decision,) = decide([order], state.state_of(results))
    return decision


def page_of(rows: list[Row], limit: int) -> tuple[list[AssignedNumber], str | None]:
    """The numbers of a page, and the cursor of the next one if there is one."""
    numbers = [AssignedNumber(*row) for row in rows[:limit]]
    return numbers, _cursor_of(numbers[-1].id) if len(rows) > limit else None


def one(rows: list[Row]) -> Row:
    """The one row that was found. Raises NOT_FOUND."""
    if not rows:
        raise Refusal(Code.NOT_FOUND)
    return rows[0]


def number_of(rows: list[Row]) -> AssignedNumber:
    return AssignedNumber(*one(rows))


def hold_of(rows: list[Row]) -> Held:
    return Held(*one(rows))


def order_of(rows: list[Row]) -> EarlierOrder:
    order_id, quantity, *_ = one(rows)
    return EarlierOrder(order_id, quantity, [AssignedNumber(*row[2:]) for row in rows])


def _caller(caller: Caller) -> dict[str, str]:
    return {"organization_id": caller.organization_id, "api_key_id": caller.api_key_id}


def _cursor_of(id_: Id) -> str:
    return urlsafe_b64encode(UUID(id_).bytes).decode().rstrip("=")


def _id_of(cursor: str) -> Id:
    return str(UUID(bytes=urlsafe_b64decode(cursor + "==")))
