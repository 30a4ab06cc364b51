"""Clients of a service that is being broken, what they were answered, and whether that is what the database holds.

Most send an order again, under its idempotency key, until they know, as the README says. The others send each order
once, without a key and with deadlines of their own: the first answer must be true by itself.
"""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import grpc
import httpx
from google.protobuf.json_format import MessageToJson
from grpc_status import rpc_status
from sqlalchemy import Engine, text

from ordernumbers.v1.errors_pb2 import ErrorResponse
from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest, OrderNumbersResponse
from server.store.check import violations
from tests.support.callers import METHOD, ROUTE
from tests.support.customer import Customer
from tests.support.stack import wait_until

CLIENTS = 12
CLIENTS_WITHOUT_KEYS = 6
CALL_SECONDS_MAX = 8.0
THINK_SECONDS_MAX = 0.1
SETTLE_SECONDS_MAX = 90
"""How long clients go on trying after the last fault."""

AGAIN = frozenset({"UNAVAILABLE", "TIMEOUT", "RATE_LIMITED", "IDEMPOTENCY_IN_PROGRESS"})
NOTHING_HEARD = "NOTHING"
"""No answer, or one that only a client library made up."""


class Heard(NamedTuple):
    """One answer: "OK" and its rows, or the code of a refusal."""

    code: str
    rows: list[dict[str, Any]] | None = None


@dataclass
class Asked:
    """One order, and all that was heard of it."""

    customer: Customer
    key: str | None
    numbers: list[str]
    heard: list[Heard] = field(default_factory=list)
    seconds_max: float = CALL_SECONDS_MAX

    @property
    def answers(self) -> list[list[dict[str, Any]]]:
        return [heard.rows for heard in self.heard if heard.rows is not None]

    @property
    def is_certainly_undone(self) -> bool:
        """Whether all that was heard says so: refused, or a 503 each time it was sent."""
        codes = [heard.code for heard in self.heard]
        return bool(codes) and not set(codes) & {"OK", "TIMEOUT", "IDEMPOTENCY_IN_PROGRESS", NOTHING_HEARD}


class Workload:
    """Clients of a running service, half over REST and half over gRPC, both through the edge, from enter to exit.

    `deadlines` are those of the orders without a key, in seconds.
    """

    def __init__(
        self,
        engine: Engine,
        edge_port: int,
        *,
        numbers: int,
        organizations: int = 4,
        deadlines: tuple[float, float] = (0.3, 10.0),
    ) -> None:
        self.engine = engine
        self.asked: list[Asked] = []
        self.asked_once: list[Asked] = []
        self._deadlines = deadlines
        self._address = f"127.0.0.1:{edge_port}"
        self._customers = [Customer.open(engine) for _ in range(organizations)]
        self._customers_without_keys = [Customer.open(engine) for _ in range(organizations)]
        self._numbers = self._customers[0].numbers(numbers)
        self._free = list(self._numbers)
        self._hot = self._customers[0].numbers(20)
        self._chance = random.Random(7)
        self._enough = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Workload":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let every client find out what became of its last order."""
        self._enough.set()
        self._thread.join(SETTLE_SECONDS_MAX + 30)
        if kind is None and self._failure:
            raise self._failure

    @property
    def sold(self) -> int:
        return sum(1 for asked in list(self.asked) if asked.answers)

    def until_sold_more(self, count: int) -> None:
        """Return when so many more orders have been answered: the service works."""
        until, deadline = self.sold + count, time.monotonic() + 60
        while self.sold < until:
            assert not self._failure, self._failure
            assert time.monotonic() < deadline, f"nothing is sold any more: {self.sold} of {until}"
            time.sleep(0.01)

    # ---------------------------------------------------------------- the clients

    def _run(self) -> None:
        try:
            asyncio.run(self._clients())
        except BaseException as error:
            self._failure = error

    async def _clients(self) -> None:
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 500)]
        channel = grpc.aio.insecure_channel(self._address, options)
        method = channel.unary_unary(METHOD)
        async with httpx.AsyncClient(base_url=f"http://{self._address}", timeout=CALL_SECONDS_MAX) as rest:
            calls = [lambda asked: _over_rest(rest, asked), lambda asked: _over_grpc(method, asked)]
            without_keys = [self._client_without_keys(calls) for _ in range(CLIENTS_WITHOUT_KEYS)]
            await asyncio.gather(*(self._client(calls) for _ in range(CLIENTS)), *without_keys)
        await channel.close()

    async def _client(self, calls: list[Any]) -> None:
        chance = self._chance
        while not self._enough.is_set():
            asked = self._next_order()
            self.asked.append(asked)
            gives_up = chance.random() < 0.1
            deadline = time.monotonic() + SETTLE_SECONDS_MAX
            while True:
                asked.heard.append(await chance.choice(calls)(asked))
                if asked.heard[-1].code not in AGAIN | {NOTHING_HEARD} or gives_up:
                    break
                assert time.monotonic() < deadline, f"nobody says what became of {asked}"
                await asyncio.sleep(chance.uniform(0.05, 0.2))
            await asyncio.sleep(chance.uniform(0, THINK_SECONDS_MAX))

    async def _client_without_keys(self, calls: list[Any]) -> None:
        chance = self._chance
        while not self._enough.is_set():
            numbers = [self._free.pop() for _ in range(chance.randint(1, 3))]
            seconds_max = chance.uniform(*self._deadlines)
            asked = Asked(chance.choice(self._customers_without_keys), None, numbers, seconds_max=seconds_max)
            self.asked_once.append(asked)
            asked.heard.append(await chance.choice(calls)(asked))
            await asyncio.sleep(chance.uniform(0, THINK_SECONDS_MAX))

    def next_numbers(self, count: int) -> list[str]:
        """Numbers that will be ordered soon."""
        return self._free[-count:]

    def _next_order(self) -> Asked:
        """Mostly of numbers that nobody else wants, sometimes of those that many do, sometimes the same once more."""
        chance = self._chance
        customer, key = chance.choice(self._customers), str(uuid4())
        if self.asked and chance.random() < 0.1:
            earlier = chance.choice(self.asked[-100:])
            return Asked(earlier.customer, earlier.key, earlier.numbers)
        if chance.random() < 0.1:
            return Asked(customer, key, chance.sample(self._hot, 2))
        return Asked(customer, key, [self._free.pop() for _ in range(chance.randint(1, 3))])

    # ---------------------------------------------------------------- the judgement

    def verify(self) -> None:
        """Every acknowledged order exists once with exactly that answer, every other one wholly or not at all; no
        number is sold twice; the money adds up; all invariants hold."""
        assert self.asked
        wait_until(lambda: not self._transactions())
        self._verify_orders_without_keys()
        kept = self._kept()
        by_key: dict[tuple[UUID, str | None], list[Asked]] = {}
        for asked in self.asked:
            by_key.setdefault((asked.customer.id, asked.key), []).append(asked)
        assert kept.keys() <= by_key.keys(), "an order that nobody asked for"
        for claim, times in by_key.items():
            answers = [answer for asked in times for answer in asked.answers]
            if answers:
                assert claim in kept, f"an acknowledged order is lost: {times}"
                assert all(answer == kept[claim].rows for answer in answers), f"not the answer that is kept: {times}"
            elif all(asked.is_certainly_undone for asked in times):
                assert claim not in kept, f"called not carried out, and it was: {times}"
        self._verify_rows(kept, by_key)
        assert violations(self.engine) == []

    def _transactions(self) -> int:
        """How many of the server's transactions are under way."""
        query = text("""
            SELECT count(*)
            FROM pg_stat_activity
            WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()
        """)
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def _verify_orders_without_keys(self) -> None:
        """What was answered OK is there exactly so. What was refused is not there. The rest is whole or not there."""
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
        for asked in self.asked_once:
            orders = {owner.pop(number, None) for number in asked.numbers}
            assert len(orders) == 1, f"half an order: {asked}"
            (order,) = orders
            assert order is None or order[0] == asked.customer.id
            (heard,) = asked.heard
            if heard.code == "OK":
                assert [(row["number"], row["id"]) for row in heard.rows or ()] == [
                    (n, ids.get(n)) for n in asked.numbers
                ]
            elif heard.code not in ("TIMEOUT", NOTHING_HEARD):
                assert order is None, f"called not carried out, and it was: {asked}"
        assert not owner, "an order that nobody asked for"

    def _kept(self) -> dict[tuple[UUID, str], "Kept"]:
        query = text(
            "SELECT organization_id, key, order_id, answer FROM idempotency_key WHERE organization_id = ANY(:ids)"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query, {"ids": [customer.id for customer in self._customers]}).all()
        return {(row.organization_id, row.key): Kept(row.order_id, _rows(row.answer)) for row in rows}

    def _verify_rows(self, kept: dict[tuple[UUID, str], "Kept"], by_key: dict[tuple[UUID, str], list[Asked]]) -> None:
        """What the tables hold of each order is what was asked for and what its answer says; there are no others."""
        query = text("""
            SELECT organization_id, id, order_id, number
            FROM assignment
            WHERE organization_id = ANY(:ids) AND released_at IS NULL
        """)
        with self.engine.connect() as connection:
            rows = connection.execute(query, {"ids": [customer.id for customer in self._customers]}).all()
        held = Counter((row.organization_id, row.order_id, str(row.id), row.number) for row in rows)
        said = Counter(
            (claim[0], each.order_id, row["id"], row["number"]) for claim, each in kept.items() for row in each.rows
        )
        assert held == said
        for claim, each in kept.items():
            assert [row["number"] for row in each.rows] == by_key[claim][0].numbers
        sold = Counter(row.number for row in rows)
        assert not [number for number, times in sold.items() if times > 1], "sold twice"


class Kept(NamedTuple):
    """What the database remembers of an order under its key."""

    order_id: UUID
    rows: list[dict[str, Any]]


def _rows(answer: bytes) -> list[dict[str, Any]]:
    """As REST has them."""
    message = OrderNumbersResponse.FromString(answer)
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return list(json.loads(MessageToJson(message, **options))["data"])


def _headers(asked: Asked) -> tuple[tuple[str, str], ...]:
    authorization = ("authorization", f"Bearer {asked.customer.key}")
    return (authorization, ("idempotency-key", asked.key)) if asked.key else (authorization,)


async def _over_rest(client: httpx.AsyncClient, asked: Asked) -> Heard:
    headers = dict(_headers(asked))
    try:
        answer = await client.post(ROUTE, json={"numbers": asked.numbers}, headers=headers, timeout=asked.seconds_max)
        said = answer.json()
    except (httpx.TransportError, ValueError):
        return Heard(NOTHING_HEARD)
    return Heard("OK", said["data"]) if said["success"] else Heard(said["error"]["code"])


async def _over_grpc(method: Any, asked: Asked) -> Heard:
    try:
        raw = await method(
            OrderNumbersRequest(numbers=asked.numbers).SerializeToString(),
            metadata=_headers(asked),
            timeout=asked.seconds_max,
        )
    except grpc.aio.AioRpcError as error:
        return Heard(_code(error))
    return Heard("OK", _rows(raw))


def _code(error: grpc.aio.AioRpcError) -> str:
    with suppress(ValueError):  # a status of the transport, which is not ours
        status = rpc_status.from_call(error)
        refusal = ErrorResponse()
        if status and status.details[-1].Unpack(refusal):
            return refusal.error.code
    return NOTHING_HEARD
