"""Reads of callers. They have connections and limits of their own, so they do not wait for orders, nor orders for them.

A read changes nothing. So one that has no time or no connection is refused with UNAVAILABLE, and can be sent again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from zlib import crc32

from server import messages
from server.admission import Response
from server.config import Settings
from server.errors import Code, Refusal
from server.rules.values import AvailableNumber, Criteria, Id, Order, Placed
from server.store import queries
from server.store.connection import DatabaseAway, Result, Row
from server.store.queries import Caller, Page
from server.store.reads import QUERIES, Reader
from server.store.searches import Search, prefix_of, search
from server.store.statements import BoundStatement

SHOWN_SECONDS = 3.0
"""How long a search of a worker leaves numbers to the caller that it has just shown them to."""
SHOWN_MAX = 10_000
SPARE_ROWS_MAX = 200


def worker_of(number: str, workers: int) -> int:
    """The worker whose searches prefer the number, so that two workers seldom show the same one."""
    return crc32(number.encode()) % workers


class Reads:
    """The reads of one worker, on `settings.read_connections`."""

    def __init__(self, settings: Settings, database_url: str, worker: int = 0) -> None:
        self._worker = worker
        self._workers = settings.workers
        self._readers = [Reader(database_url, settings, QUERIES) for _ in range(settings.read_connections)]
        self._free: asyncio.LifoQueue[Reader] = asyncio.LifoQueue()
        for reader in self._readers:
            self._free.put_nowait(reader)
        self._count = 0
        self._count_max = settings.reads_in_progress_max
        self._shown = Shown()
        self._wanted = 0  # numbers, by the searches in progress

    @property
    def is_full(self) -> bool:
        """Whether one more read would be refused at once."""
        return self._count >= self._count_max

    @property
    def in_progress(self) -> int:
        """Reads that wait or run."""
        return self._count

    async def check_if_idle(self) -> None:
        """Test the connections that are open and not in use. Close those that are lost."""
        await asyncio.gather(*(reader.check_if_idle() for reader in self._readers))

    async def close(self) -> None:
        await asyncio.gather(*(reader.close() for reader in self._readers))

    async def search(self, caller: Caller, criteria: Criteria, quantity: int, seconds: float) -> Response:
        """Find numbers that every organization can order. Those shown to others a moment ago come last."""
        # Some of them may be shown to others before we have the result. It takes long to find many numbers with a
        # pattern, and another worker seldom looks for the same one.
        of_others = 0 if criteria.pattern else quantity * (self._workers - 1)
        spare = min(self._shown.count(criteria) + self._wanted + of_others, SPARE_ROWS_MAX)
        wanted = Search(caller.api_key_id, criteria, quantity + spare)
        self._wanted += quantity
        try:
            rows = await self._rows(caller, search(wanted), seconds)
        finally:
            self._wanted -= quantity
        found = [AvailableNumber(*row) for row in rows]
        # The searches of the other workers prefer their own share.
        found.sort(key=lambda each: worker_of(each.number, self._workers) != self._worker)
        return _response(messages.search_response(self._shown.choose(found, quantity)))

    async def list_numbers(self, caller: Caller, page: Page, seconds: float) -> Response:
        rows = await self._rows(caller, queries.list_numbers(caller, page), seconds)
        numbers, next_cursor = queries.page_of(rows, page.limit)
        return _response(messages.list_response(numbers, page.limit, next_cursor))

    async def number(self, caller: Caller, id_: Id, seconds: float) -> Response:
        rows = await self._rows(caller, queries.get_number(caller, id_), seconds)
        return _response(messages.number_response(queries.number_of(rows)))

    async def hold(self, caller: Caller, id_: Id, seconds: float) -> Response:
        rows = await self._rows(caller, queries.get_hold(caller, id_), seconds)
        return _response(messages.hold_response(queries.hold_of(rows)))

    async def order(self, caller: Caller, id_: Id, seconds: float) -> Response:
        rows = await self._rows(caller, queries.get_order(caller, id_=id_), seconds)
        return _order_response(rows)

    async def order_under_key(self, caller: Caller, idempotency_key: str, seconds: float) -> Response:
        rows = await self._rows(caller, queries.get_order(caller, idempotency_key=idempotency_key), seconds)
        return _order_response(rows)

    async def bulk_order(self, caller: Caller, id_: Id, seconds: float) -> Response:
        order = queries.order_of(await self._rows(caller, queries.get_order(caller, id_=id_), seconds))
        if order.quantity is None:
            raise Refusal(Code.NOT_FOUND)
        return _response(messages.earlier_bulk_order_response(order.id, order.quantity, order.numbers))

    async def preview(self, order: Order, seconds: float) -> Response:
        """Decide an order without carrying it out. Raises the Refusal that was decided."""
        statements = queries.preview(order)
        results = await self._run(list(statements.values()), seconds)
        decision = queries.decided(order, dict(zip(statements, results, strict=True)))
        if isinstance(decision, Refusal):
            raise decision
        assert isinstance(decision, Placed)  # noqa: S101  it has no idempotency key, and nothing is locked
        return _response(messages.preview_response(decision))

    async def _rows(self, caller: Caller, statement: BoundStatement, seconds: float) -> list[Row]:
        (result,) = await self._run([statement], seconds)
        return queries.rows_for(caller, result)

    async def _run(self, statements: Sequence[BoundStatement], seconds: float) -> list[Result]:
        """Execute statements on the next free connection. Raises UNAVAILABLE."""
        if self.is_full:
            raise Refusal(Code.UNAVAILABLE)
        ends = asyncio.get_running_loop().time() + seconds
        self._count += 1
        try:
            async with asyncio.timeout_at(ends):
                reader = await self._free.get()
            try:
                return await reader.run(statements, ends - asyncio.get_running_loop().time())
            finally:
                self._free.put_nowait(reader)
        except (TimeoutError, DatabaseAway):
            raise Refusal(Code.UNAVAILABLE) from None
        finally:
            self._count -= 1


class Shown:
    """The numbers that searches have shown a moment ago, oldest first."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def count(self, criteria: Criteria) -> int:
        """How many of them have the area code and the pattern."""
        self._forget()
        if not (criteria.area_code or criteria.pattern):
            return len(self._until)
        prefix, pattern = prefix_of(criteria), criteria.pattern or ""
        return sum(pattern in number and number.startswith(prefix) for number in self._until)

    def choose(self, found: Sequence[AvailableNumber], quantity: int) -> list[AvailableNumber]:
        """Choose so many numbers. Those that were shown a moment ago are only taken if there are not enough others."""
        self._forget()
        # Those that were never shown first, then those that were shown longest ago.
        chosen = sorted(found, key=lambda number: self._until.get(number.number, 0.0))[:quantity]
        for number in chosen:
            self._until.pop(number.number, None)  # so that the oldest is always the first
            self._until[number.number] = time.monotonic() + SHOWN_SECONDS
        return chosen

    def _forget(self) -> None:
        now = time.monotonic()
        while self._until and (len(self._until) > SHOWN_MAX or next(iter(self._until.values())) < now):
            self._until.popitem(last=False)


def _response(message: bytes) -> Response:
    return Response(message, key_is_valid=True)


def _order_response(rows: list[Row]) -> Response:
    order = queries.order_of(rows)
    return _response(messages.earlier_order_response(order.id, order.numbers))
