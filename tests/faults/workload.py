"""Clients of a service that a test breaks. `Workload.verify` compares what they received with the database.

Most clients send an order again with its idempotency key until its outcome is certain, as docs/calling.md says. The
others send each order once, without a key and with shorter or longer deadlines. So their first response must be right.
"""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import grpc
import httpx
from google.protobuf.json_format import MessageToJson
from grpc_status import rpc_status
from sqlalchemy import Engine, text

from ordernumbers.v1.errors_pb2 import ErrorResponse
from ordernumbers.v1.orders_pb2 import OrderNumbersRequest, OrderNumbersResponse
from server.store.check import violations
from tests.support.callers import METHOD, ROUTE
from tests.support.customer import Customer
from tests.support.stack import WAIT_SECONDS_MAX, wait_until

CLIENTS = 12
CLIENTS_WITHOUT_KEYS = 6
CALL_SECONDS_MAX = 8.0
THINK_SECONDS_MAX = 0.1
REST_SECONDS_MAX = 5.0
"""The default of ORDERNUMBERS_REST_DEADLINE_MS."""
SETTLE_SECONDS_MAX = 180
"""How long a client tries to learn what became of an order."""

NO_RESPONSE = "NO_RESPONSE"
"""No response, or an error that only the client library reports."""
RETRIED = frozenset({"UNAVAILABLE", "TIMEOUT", "RATE_LIMITED", "IDEMPOTENCY_IN_PROGRESS", NO_RESPONSE})
UNCERTAIN = frozenset({"TIMEOUT", "IDEMPOTENCY_IN_PROGRESS", NO_RESPONSE})
"""Codes after which the order may have been placed."""


class Outcome(NamedTuple):
    """What one call returned: "OK" and its rows, or the code of a refusal. And when, on the monotonic clock."""

    code: str
    rows: list[dict[str, Any]] | None = None
    began: float = 0.0
    ended: float = 0.0
    seconds_max: float = CALL_SECONDS_MAX
    """How long the service might take to respond."""
    request_id: str = ""
    """Its X-Request-Id. REST only."""


@dataclass
class SentOrder:
    """One order, and the outcome of each call that sent it."""

    customer: Customer
    key: str | None
    numbers: list[str]
    outcomes: list[Outcome] = field(default_factory=list)
    seconds_max: float = CALL_SECONDS_MAX

    @property
    def sales(self) -> list[list[dict[str, Any]]]:
        """The rows of every successful response."""
        return [outcome.rows for outcome in self.outcomes if outcome.rows is not None]

    @property
    def is_certainly_not_placed(self) -> bool:
        """Whether every call was refused with a code which means that the order was not placed."""
        codes = {outcome.code for outcome in self.outcomes}
        return bool(codes) and not codes & (UNCERTAIN | {"OK"})


class Workload:
    """Clients of a running service, over REST and gRPC through the edge. They work from enter to exit.

    `edges` is the port of an edge on this machine, or hosts with ports. Each call goes to any of them.
    `deadlines` is the range of the deadlines of orders without a key, in seconds.
    """

    def __init__(
        self,
        engine: Engine,
        edges: int | Sequence[str],
        *,
        numbers: int,
        organizations: int = 4,
        deadlines: tuple[float, float] = (0.3, 10.0),
        clients: int = CLIENTS,
        clients_without_keys: int = CLIENTS_WITHOUT_KEYS,
    ) -> None:
        self.engine = engine
        self.sent: list[SentOrder] = []
        self.sent_once: list[SentOrder] = []
        self.sold = 0
        """How many orders of `sent` have a successful response."""
        self._deadlines = deadlines
        self._edges = [f"127.0.0.1:{edges}"] if isinstance(edges, int) else edges
        self._clients_count, self._clients_without_keys_count = clients, clients_without_keys
        self._customers = [Customer.open(engine) for _ in range(organizations)]
        self._customers_without_keys = [Customer.open(engine) for _ in range(organizations)]
        self._numbers = self._customers[0].numbers(numbers)
        self._free = list(self._numbers)
        self._contested = self._customers[0].numbers(20)
        self._chance = random.Random(7)
        self._enough = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Workload":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until every client knows what became of its last order."""
        self._enough.set()
        self._thread.join(SETTLE_SECONDS_MAX + 30)
        if kind is None and self._failure:
            raise self._failure

    def wait_for_orders(self, count: int, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        """Wait for `count` more successful orders, which show that the service works."""
        target = self.sold + count
        wait_until(
            lambda: self.sold >= target,
            seconds_max=seconds_max,
            is_hopeless=lambda: self._failure,
            report=lambda: self._failure or f"{self.sold} of {target} orders",
        )

    # ---------------------------------------------------------------- the clients

    def _run(self) -> None:
        try:
            asyncio.run(self._clients())
        except BaseException as error:  # the thread must not lose it
            self._failure = error

    async def _clients(self) -> None:
        # By default gRPC waits up to two minutes before it connects again.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500)]
        async with AsyncExitStack() as stack:
            calls = []
            for edge in self._edges:
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(edge, options))
                method = channel.unary_unary(METHOD)
                limits = httpx.Limits(max_connections=None)
                client = httpx.AsyncClient(base_url=f"http://{edge}", timeout=CALL_SECONDS_MAX, limits=limits)
                rest = await stack.enter_async_context(client)
                calls += [partial(_timed, partial(_send_over_rest, rest), REST_SECONDS_MAX)]
                calls += [partial(_timed, partial(_send_over_grpc, method), None)]
            without_keys = [self._client_without_keys(calls) for _ in range(self._clients_without_keys_count)]
            await asyncio.gather(*(self._client(calls) for _ in range(self._clients_count)), *without_keys)

    async def _client(self, calls: list[Any]) -> None:
        rng = self._chance
        while not self._enough.is_set():
            order = self._next_order()
            self.sent.append(order)
            gives_up = rng.random() < 0.1
            deadline = time.monotonic() + SETTLE_SECONDS_MAX
            while True:
                order.outcomes.append(await rng.choice(calls)(order))
                if order.outcomes[-1].code not in RETRIED or gives_up:
                    self.sold += bool(order.sales)
                    break
                assert time.monotonic() < deadline, f"it is unknown what became of {order}"
                await asyncio.sleep(rng.uniform(0.05, 0.2))
            await asyncio.sleep(rng.uniform(0, THINK_SECONDS_MAX))

    async def _client_without_keys(self, calls: list[Any]) -> None:
        rng = self._chance
        while not self._enough.is_set():
            numbers = [self._free.pop() for _ in range(rng.randint(1, 3))]
            seconds_max = rng.uniform(*self._deadlines)
            order = SentOrder(rng.choice(self._customers_without_keys), None, numbers, seconds_max=seconds_max)
            self.sent_once.append(order)
            order.outcomes.append(await rng.choice(calls)(order))
            await asyncio.sleep(rng.uniform(0, THINK_SECONDS_MAX))

    def next_numbers(self, count: int) -> list[str]:
        """The numbers that will be ordered next."""
        return self._free[-count:]

    def _next_order(self) -> SentOrder:
        """Mostly an order of new numbers. Sometimes one of numbers that many orders want, or an earlier one again."""
        rng = self._chance
        customer, key = rng.choice(self._customers), str(uuid4())
        if self.sent and rng.random() < 0.1:
            earlier = rng.choice(self.sent[-100:])
            return SentOrder(earlier.customer, earlier.key, earlier.numbers)
        if rng.random() < 0.1:
            return SentOrder(customer, key, rng.sample(self._contested, 2))
        return SentOrder(customer, key, [self._free.pop() for _ in range(rng.randint(1, 3))])

    # ---------------------------------------------------------------- what the database holds

    def verify(self) -> None:
        """Fail unless the database and the responses agree, and every invariant holds.

        An acknowledged order exists once, with exactly its response. Any other order exists completely or not at all.
        """
        assert self.sent
        wait_until(lambda: not self._transactions())
        self._verify_orders_without_keys()
        stored = self._stored_orders()
        by_key: dict[tuple[UUID, str | None], list[SentOrder]] = {}
        for order in self.sent:
            by_key.setdefault((order.customer.id, order.key), []).append(order)
        assert stored.keys() <= by_key.keys(), "an order that no client sent"
        for key, orders in by_key.items():
            sales = [rows for order in orders for rows in order.sales]
            if sales:
                assert key in stored, f"an acknowledged order is lost: {orders}"
                assert all(rows == stored[key].rows for rows in sales), f"not the stored response: {orders}"
            elif all(order.is_certainly_not_placed for order in orders):
                assert key not in stored, f"placed, though every response was a refusal: {orders}"
        self._verify_rows(stored, by_key)
        assert violations(self.engine) == []

    def _transactions(self) -> int:
        """How many transactions that write are under way."""
        query = text("""
            SELECT count(*)
            FROM pg_stat_activity
            WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()
        """)
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def _verify_orders_without_keys(self) -> None:
        """A successful order is there, exactly as in its response. A refused one is not. No order is there in part."""
        query = text("""
            SELECT organization_id, order_id, id, number
            FROM assignment
            WHERE organization_id = ANY(:ids)
        """)
        with self.engine.connect() as connection:
            rows = connection.execute(query, {"ids": [customer.id for customer in self._customers_without_keys]}).all()
        owner = {row.number: (row.organization_id, row.order_id) for row in rows}
        ids = {row.number: str(row.id) for row in rows}
        assert len(owner) == len(rows), "sold twice"
        for order in self.sent_once:
            placed = {owner.pop(number, None) for number in order.numbers}
            assert len(placed) == 1, f"a part of an order: {order}"
            (owned_by,) = placed
            assert owned_by is None or owned_by[0] == order.customer.id
            (outcome,) = order.outcomes
            if outcome.code == "OK":
                assert [(row["number"], row["id"]) for row in outcome.rows or ()] == [
                    (n, ids.get(n)) for n in order.numbers
                ]
            elif outcome.code not in ("TIMEOUT", NO_RESPONSE):
                assert owned_by is None, f"placed, though the response was a refusal: {order}"
        assert not owner, "an order that no client sent"

    def _stored_orders(self) -> dict[tuple[UUID, str], "StoredOrder"]:
        query = text(
            "SELECT organization_id, key, order_id, answer FROM idempotency_key WHERE organization_id = ANY(:ids)"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query, {"ids": [customer.id for customer in self._customers]}).all()
        return {(row.organization_id, row.key): StoredOrder(row.order_id, _rows(row.answer)) for row in rows}

    def _verify_rows(
        self, stored: dict[tuple[UUID, str], "StoredOrder"], by_key: dict[tuple[UUID, str], list[SentOrder]]
    ) -> None:
        """The assignments are those of the stored responses, of the numbers that were ordered, and no others."""
        query = text("""
            SELECT organization_id, id, order_id, number
            FROM assignment
            WHERE organization_id = ANY(:ids) AND released_at IS NULL
        """)
        with self.engine.connect() as connection:
            rows = connection.execute(query, {"ids": [customer.id for customer in self._customers]}).all()
        found = Counter((row.organization_id, row.order_id, str(row.id), row.number) for row in rows)
        expected = Counter(
            (key[0], order.order_id, row["id"], row["number"]) for key, order in stored.items() for row in order.rows
        )
        assert found == expected
        for key, order in stored.items():
            assert [row["number"] for row in order.rows] == by_key[key][0].numbers
        sold = Counter(row.number for row in rows)
        assert not [number for number, times in sold.items() if times > 1], "sold twice"


class StoredOrder(NamedTuple):
    """What the database stores for an idempotency key."""

    order_id: UUID
    rows: list[dict[str, Any]]


def _rows(response: bytes) -> list[dict[str, Any]]:
    """The rows of a serialized response, as REST returns them."""
    message = OrderNumbersResponse.FromString(response)
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return list(json.loads(MessageToJson(message, **options))["data"])


def _headers(order: SentOrder) -> tuple[tuple[str, str], ...]:
    authorization = ("authorization", f"Bearer {order.customer.key}")
    return (authorization, ("idempotency-key", order.key)) if order.key else (authorization,)


async def _timed(send: Any, seconds_max: float | None, order: SentOrder) -> Outcome:
    began = time.monotonic()
    outcome: Outcome = await send(order)
    limit = order.seconds_max if seconds_max is None else seconds_max
    return outcome._replace(began=began, ended=time.monotonic(), seconds_max=limit)


async def _send_over_rest(client: httpx.AsyncClient, order: SentOrder) -> Outcome:
    headers = dict(_headers(order))
    try:
        response = await client.post(ROUTE, json={"numbers": order.numbers}, headers=headers, timeout=order.seconds_max)
        body = response.json()
    except (httpx.TransportError, ValueError):
        return Outcome(NO_RESPONSE)
    outcome = Outcome("OK", body["data"]) if body["success"] else Outcome(body["error"]["code"])
    return outcome._replace(request_id=response.headers["x-request-id"])


async def _send_over_grpc(method: Any, order: SentOrder) -> Outcome:
    try:
        raw = await method(
            OrderNumbersRequest(numbers=order.numbers).SerializeToString(),
            metadata=_headers(order),
            timeout=order.seconds_max,
        )
    except grpc.aio.AioRpcError as error:
        return Outcome(_code(error))
    return Outcome("OK", _rows(raw))


def _code(error: grpc.aio.AioRpcError) -> str:
    with suppress(ValueError):  # a status that gRPC made, without our details
        status = rpc_status.from_call(error)
        refusal = ErrorResponse()
        if status and status.details[-1].Unpack(refusal):
            return refusal.error.code
    return NO_RESPONSE
