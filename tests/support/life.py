"""What a customer does with numbers, as a server carries it out on a real database. There is no server."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID

from server.config import Settings
from server.rules.values import Action, Done, EndHold, Hold, Placed, Release, Route, Routing
from server.store import orders
from server.store.connection import connect
from server.store.transaction import Limits
from tests.support.customer import Customer
from tests.support.databases import Database
from tests.support.orders import order_of
from tests.support.retries import retried
from tests.support.writes import carry_out, write_of

LIMITS = Limits(lock_seconds=5.0, statement_seconds=5.0)
REST_MS = 3_600_000
REQUEST_ID = "01J00000000000000000000000"


class Life:
    """The life of a customer's numbers. Every call must succeed."""

    def __init__(self, database: Database, customer: Customer) -> None:
        self.customer = customer
        self._url = database.url

    def order(self, number: str, **routing: Any) -> UUID:
        """Order a number, and return the id of its assignment."""
        order = order_of(self.customer, number, routing=Routing(**routing))._replace(request_id=REQUEST_ID)

        async def run() -> Any:
            connection = await connect(self._url, Settings(), orders.STATEMENTS)
            try:
                return await retried(connection, lambda: orders.place(connection, [order], LIMITS))
            finally:
                await connection.close()

        (placed,) = asyncio.run(run())
        assert isinstance(placed, Placed), placed
        return UUID(order.assignment_ids[0])

    def hold(self, *numbers: str, minutes: int = 10) -> UUID:
        """Hold numbers, and return the hold's id."""
        return UUID(self._carry_out(Hold(numbers, minutes, held_max=1000)).write.id)

    def end_hold(self, hold_id: UUID) -> None:
        self._carry_out(EndHold(str(hold_id)))

    def route(self, assignment_id: UUID, **changes: Any) -> None:
        self._carry_out(Route(str(assignment_id), changes))

    def release(self, assignment_id: UUID, rest_ms: int = REST_MS) -> datetime:
        """Release a number, and return when its rest ends."""
        result: Any = self._carry_out(Release((str(assignment_id),), rest_ms, is_bulk=False)).result
        return result.available_at

    def _carry_out(self, action: Action) -> Done:
        write = write_of(self.customer, action)._replace(request_id=REQUEST_ID)
        (outcome,) = carry_out(self._url, write, limits=LIMITS)
        assert isinstance(outcome, Done), outcome
        return outcome
