"""What the service should do: a model of organizations, their keys, credit, campaigns, and the life of each number.

It knows no database. Times are not in it: holds and rests end when the test says that time passes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CAMPAIGN_RULES = {
    ("PENDING", "VERIFIED"): "must be ACTIVE",
    ("ACTIVE", "UNVERIFIED"): "brand must be VERIFIED or VETTED_VERIFIED",
}
READ, WRITE = "numbers:read", "numbers:write"
READS = frozenset({"GetBulkOrder", "GetOrder", "FindOrder", "GetHold", "ListNumbers", "GetNumber"})
ROUTING = ("inbound_url", "status_url", "label", "campaign_id")
TIMES = ("created_at", "updated_at")

Row = dict[str, Any]
Request = Mapping[str, Any]


class Key(NamedTuple):
    """An API key of a customer, who is an index."""

    customer: int
    text: str
    scopes: tuple[str, ...]


@dataclass
class Number:
    """A number: who has it, who holds it, and for whom it rests."""

    assignment: str | None = None
    hold: str | None = None
    held_by: int | None = None
    rests_for: int | None = None

    @property
    def is_free(self) -> bool:
        """Whether every organization can order it."""
        return self.assignment is None and self.held_by is None and self.rests_for is None

    def is_available_to(self, customer: int) -> bool:
        return self.assignment is None and {self.held_by, self.rests_for} <= {None, customer}


@dataclass
class Assignment:
    """A number that a customer has or had, and its row in responses without the times."""

    customer: int
    row: Row
    is_live: bool = True


class Order(NamedTuple):
    """An order that can be looked up by its id, with the rows that its response had."""

    customer: int
    rows: list[Row]
    is_bulk: bool


class Stored(NamedTuple):
    """What is known under an idempotency key."""

    rpc: str
    request: Request
    body: Row


@dataclass
class Model:
    """The state, and the code that each call must get."""

    credit: list[int]
    numbers: dict[str, Number] = field(default_factory=dict)
    assignments: dict[str, Assignment] = field(default_factory=dict)
    holds: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """Those that have not ended: their customers, and the numbers that they were made for."""
    orders: dict[str, Order] = field(default_factory=dict)
    """Those whose ids are known."""
    campaigns: dict[str, tuple[int, tuple[str, str]]] = field(default_factory=dict)
    stored: dict[tuple[int, str], Stored] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)

    # ---------------------------------------------------------------- the code of a call

    def expected(self, rpc: str, key: Key, header_key: str | None, request: Request) -> str:
        """ "OK", or the code of the refusal."""
        if key.text in self.revoked:
            return "UNAUTHORIZED"
        if (READ if rpc in READS else WRITE) not in key.scopes:
            return "FORBIDDEN"
        if stored := self.stored_for(rpc, header_key, request, key.customer):
            return "OK" if stored[:2] == (rpc, canonical(request)) else "IDEMPOTENCY_KEY_REUSED"
        decide = getattr(self, f"_{rpc}")
        return str(decide(key.customer, request) or "OK")

    def stores(self, rpc: str, request: Request) -> bool:
        """Whether a call uses up its idempotency key. Reads do not, nor orders that are only checked."""
        return rpc not in READS and rpc != "SearchNumbers" and not request.get("validate_only")

    def stored_for(self, rpc: str, header_key: str | None, request: Request, customer: int) -> Stored | None:
        """What is stored under the idempotency key of a call."""
        return self.stored.get((customer, header_key)) if header_key and self.stores(rpc, request) else None

    def _OrderNumbers(self, customer: int, request: Request) -> str | None:  # noqa: N802
        refusal = self._campaign_refusal(customer, request.get("campaign_id"))
        if refusal or self.unavailable(customer, request["numbers"]):
            return refusal or "INSUFFICIENT_INVENTORY"
        return None if self.credit[customer] >= len(request["numbers"]) else "INSUFFICIENT_CREDIT"

    def _BulkOrderNumbers(self, customer: int, request: Request) -> str | None:  # noqa: N802
        refusal = self._campaign_refusal(customer, request.get("campaign_id"))
        if refusal or len(self.free) < request["quantity"]:
            return refusal or "INSUFFICIENT_INVENTORY"
        return None if self.credit[customer] >= request["quantity"] else "INSUFFICIENT_CREDIT"

    def _HoldNumbers(self, customer: int, request: Request) -> str | None:  # noqa: N802
        return "INSUFFICIENT_INVENTORY" if self.unavailable(customer, request["numbers"]) else None

    def _GetHold(self, customer: int, request: Request) -> str | None:  # noqa: N802
        return None if self.holds.get(request["id"], (None,))[0] == customer else "NOT_FOUND"

    _ReleaseHold = _GetHold

    def _GetNumber(self, customer: int, request: Request) -> str | None:  # noqa: N802
        found = self.assignments.get(request["id"])
        return None if found and found.is_live and found.customer == customer else "NOT_FOUND"

    _ReleaseNumber = _DetachCampaign = _GetNumber

    def _UpdateNumber(self, customer: int, request: Request) -> str | None:  # noqa: N802
        return self._GetNumber(customer, request) or self._campaign_refusal(customer, request.get("campaign_id"))

    _AttachCampaign = _UpdateNumber

    def _GetOrder(self, customer: int, request: Request) -> str | None:  # noqa: N802
        found = self.orders.get(request["id"])
        return None if found and found.customer == customer else "NOT_FOUND"

    def _GetBulkOrder(self, customer: int, request: Request) -> str | None:  # noqa: N802
        found = self.orders.get(request["id"])
        return None if found and found.customer == customer and found.is_bulk else "NOT_FOUND"

    def _FindOrder(self, customer: int, request: Request) -> str | None:  # noqa: N802
        found = self.stored.get((customer, request["idempotency_key"]))
        return None if found and found.rpc in ("OrderNumbers", "BulkOrderNumbers") else "NOT_FOUND"

    def _SearchNumbers(self, customer: int, request: Request) -> str | None:  # noqa: N802
        return None

    _ListNumbers = _BulkReleaseNumbers = _SearchNumbers

    def _campaign_refusal(self, customer: int, campaign_id: str | None) -> str | None:
        if campaign_id is None:
            return None
        owner, state = self.campaigns.get(campaign_id, (None, None))
        if owner != customer:
            return "NOT_FOUND"
        return "VALIDATION_FAILED" if state in CAMPAIGN_RULES else None

    # ---------------------------------------------------------------- what is known

    @property
    def free(self) -> set[str]:
        """The numbers that a search finds."""
        return {number for number, state in self.numbers.items() if state.is_free}

    def unavailable(self, customer: int, numbers: Iterable[str]) -> list[str]:
        known = self.numbers
        return [number for number in numbers if not (number in known and known[number].is_available_to(customer))]

    def owner_of(self, id_: str | None) -> int | None:
        """The customer who has or had the number, the hold or the order of that id."""
        if id_ in self.assignments:
            return self.assignments[id_].customer
        if id_ in self.holds:
            return self.holds[id_][0]
        return self.orders[id_].customer if id_ in self.orders else None

    def owned(self, customer: int) -> list[Assignment]:
        """The numbers of a customer, newest first."""
        mine = {id_: each for id_, each in self.assignments.items() if each.customer == customer and each.is_live}
        return [mine[id_] for id_ in sorted(mine, reverse=True)]

    def kept(self, hold_id: str) -> list[str]:
        """The numbers that a hold still keeps."""
        return [number for number in self.holds[hold_id][1] if self.numbers[number].hold == hold_id]

    # ---------------------------------------------------------------- what changes

    def order(self, customer: int, rows: Iterable[Row], order_id: str | None = None, *, is_bulk: bool = False) -> None:
        """An order was carried out, with these rows in its response."""
        rows = [without_times(row) for row in rows]
        self.credit[customer] -= len(rows)
        for row in rows:
            self.assignments[row["id"]] = Assignment(customer, row)
            self.numbers[row["number"]] = Number(assignment=row["id"])
        if order_id:
            self.know_order(customer, order_id, rows, is_bulk=is_bulk)

    def know_order(self, customer: int, order_id: str, rows: Iterable[Row], *, is_bulk: bool) -> None:
        self.orders[order_id] = Order(customer, [without_times(row) for row in rows], is_bulk)

    def hold(self, customer: int, hold_id: str, numbers: list[str]) -> None:
        self.holds[hold_id] = (customer, numbers)
        for number in numbers:
            self.numbers[number].hold, self.numbers[number].held_by = hold_id, customer

    def end_hold(self, hold_id: str) -> None:
        for number in self.kept(hold_id):
            self.numbers[number].hold = self.numbers[number].held_by = None
        del self.holds[hold_id]

    def route(self, id_: str, changes: Request) -> None:
        """Change an assignment. An empty text removes a value."""
        assignment = self.assignments[id_]
        row = assignment.row | {name: value for name, value in changes.items() if value}
        assignment.row = {name: value for name, value in row.items() if changes.get(name, "kept")}

    def release(self, id_: str) -> None:
        assignment = self.assignments[id_]
        assignment.is_live = False
        self.numbers[assignment.row["number"]] = Number(rests_for=assignment.customer)

    def buckets(self, customer: int, ids: Iterable[str]) -> dict[str, list[str]]:
        """What a bulk release must say about these ids."""
        found: dict[str, list[str]] = {"released": [], "already_released": [], "unknown": []}
        for id_ in dict.fromkeys(ids):
            assignment = self.assignments.get(id_)
            if assignment is None or assignment.customer != customer:
                found["unknown"].append(id_)
            elif assignment.is_live:
                found["released"].append(id_)
            else:
                number = self.numbers[assignment.row["number"]]
                rests = number.assignment is None and number.rests_for == customer
                found["already_released" if rests else "unknown"].append(id_)
        return found

    def holds_expire(self) -> None:
        for hold_id in list(self.holds):
            self.end_hold(hold_id)

    def rests_end(self) -> None:
        self.holds_expire()
        for number in self.numbers.values():
            number.rests_for = None


def canonical(request: Request) -> Request:
    """The request as an idempotency key stands for it. Repeated ids make no difference."""
    return {**request, "ids": list(dict.fromkeys(request["ids"]))} if "ids" in request else request


def without_times(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in TIMES}
