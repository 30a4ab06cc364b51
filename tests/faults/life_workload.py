"""Clients that hold, order, change and give back numbers while a test breaks the service. workload.py has only orders.

Each client has numbers of its own, so that each of its writes must succeed. It sends a write again with its idempotency
key until the outcome is certain. Then the database must hold exactly what the client was told.
"""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Engine, text

from server.store.check import violations
from tests.faults.workload import CALL_SECONDS_MAX, RETRIED, SETTLE_SECONDS_MAX, UNCERTAIN
from tests.support.callers import SERVICE
from tests.support.crowd import Reply, Rpc, calls_to
from tests.support.customer import Customer
from tests.support.inventory import new_area_code, stock
from tests.support.stack import wait_until

CLIENTS = 6
THINK_SECONDS_MAX = 0.1
STORED = text("""
    SELECT organization_id, key, coalesce(method, 'OrderNumbers') AS rpc, answer
    FROM idempotency_key
    WHERE organization_id = ANY(:ids)
""")
LIVE = text("""
    SELECT id::text, number, label, campaign_id::text
    FROM assignment
    WHERE organization_id = ANY(:ids) AND released_at IS NULL
""")
HELD = text("""
    SELECT number
    FROM phone_number JOIN hold ON hold.id = hold_id
    WHERE held_by = ANY(:ids) AND assignment_id IS NULL AND released_at IS NULL
""")


class Abandoned(Exception):
    """The client gave up, so it does not know what became of its write."""


@dataclass
class SentWrite:
    """One write, and what each call that sent it returned."""

    customer: Customer
    rpc: str
    request: Mapping[str, Any]
    key: str = field(default_factory=lambda: str(uuid4()))
    replies: list[Reply] = field(default_factory=list)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Those of every successful call."""
        return [reply.body for reply in self.replies if reply.code == "OK"]

    @property
    def is_certainly_not_done(self) -> bool:
        return not {reply.code for reply in self.replies} & (UNCERTAIN | {"OK"})


class LifeWorkload:
    """Clients of a running service, over REST and gRPC through the edge. They work from enter to exit."""

    def __init__(self, engine: Engine, edge_port: int, *, numbers: int, organizations: int = 3) -> None:
        self.engine = engine
        self.sent: list[SentWrite] = []
        self._address = f"127.0.0.1:{edge_port}"
        self._customers = [Customer.open(engine) for _ in range(organizations)]
        self._campaigns = {customer.id: str(customer.campaign()) for customer in self._customers}
        self._numbers = self._customers[0].numbers(numbers)
        self._area_code = new_area_code()
        # A bulk order that was given up may have taken some of them.
        stock(self._customers[0], self._area_code, numbers)
        self._live: dict[str, tuple[str, str | None, str | None]] = {}
        self._held: set[str] = set()
        self._unclear: set[str] = set()
        """Numbers and ids that a write named which was given up."""
        self._chance = random.Random(5)
        self._enough = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "LifeWorkload":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until every client knows what became of its last write."""
        self._enough.set()
        self._thread.join(SETTLE_SECONDS_MAX + 30)
        if kind is None and self._failure:
            raise self._failure

    def wait_for_writes(self, count: int) -> None:
        """Wait for `count` more successful writes."""
        target = self._done() + count
        wait_until(
            lambda: self._done() >= target,
            is_hopeless=lambda: self._failure,
            report=lambda: self._failure or f"{self._done()} of {target} writes",
        )

    def _done(self) -> int:
        return sum(1 for write in list(self.sent) if write.bodies)

    # ---------------------------------------------------------------- the clients

    def _run(self) -> None:
        try:
            asyncio.run(self._clients())
        except BaseException as error:  # the thread must not lose it
            self._failure = error

    async def _clients(self) -> None:
        async with calls_to(f"http://{self._address}", [self._address]) as ways:
            await asyncio.gather(*(self._client(ways, self._customers[i % 3]) for i in range(CLIENTS)))

    async def _client(self, ways: list[Rpc], customer: Customer) -> None:
        async def write(rpc: str, names: tuple[str, ...] = (), **request: Any) -> Any:
            sent = SentWrite(customer, rpc, request)
            self.sent.append(sent)
            try:
                return await self._certain(ways, sent)
            except Abandoned:
                self._unclear.update(names)
                raise
            finally:
                await asyncio.sleep(self._chance.uniform(0, THINK_SECONDS_MAX))

        while not self._enough.is_set():
            try:
                await self._life(customer, write)
            except Abandoned:
                continue

    async def _certain(self, ways: list[Rpc], sent: SentWrite) -> Any:
        """The data of the response. Raises Abandoned, now and then, when there is none at once."""
        rng = self._chance
        gives_up = rng.random() < 0.05
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            way = rng.choice(ways)
            reply = await way(
                sent.rpc, sent.customer.key, header_key=sent.key, seconds=CALL_SECONDS_MAX, **sent.request
            )
            sent.replies.append(reply)
            if reply.code == "OK":
                return reply.data
            assert reply.code in RETRIED, f"refused: {sent}"
            if gives_up:
                raise Abandoned
            assert time.monotonic() < deadline, f"it is unknown what became of {sent}"
            await asyncio.sleep(rng.uniform(0.05, 0.2))

    async def _life(self, customer: Customer, write: Callable[..., Awaitable[Any]]) -> None:
        """Hold four numbers, order two of them and any two others. Change some of them, and give some back."""
        numbers = [self._numbers.pop() for _ in range(4)]
        hold = await write("HoldNumbers", (*numbers,), numbers=numbers)
        self._held.update(numbers)
        rows = await write("OrderNumbers", (*numbers,), numbers=numbers[:2], label="first")
        self._held.difference_update(numbers[:2])
        self._know(rows, "first")
        ended = await write("ReleaseHold", (*numbers,), id=hold["id"])
        assert ended["numbers"] == numbers[2:]
        self._held.difference_update(numbers)
        order = await write("BulkOrderNumbers", quantity=2, area_code=self._area_code)
        self._know(order["assigned_numbers"], None)
        first, second, third, fourth = (row["id"] for row in [*rows, *order["assigned_numbers"]])
        await write("UpdateNumber", (first, numbers[0]), id=first, label="second")
        self._live[first] = (numbers[0], "second", None)
        campaign_id = self._campaigns[customer.id]
        await write("AttachCampaign", (second, numbers[1]), id=second, campaign_id=campaign_id)
        self._live[second] = (numbers[1], "first", campaign_id)
        if self._chance.random() < 0.5:
            await write("DetachCampaign", (second, numbers[1]), id=second)
            self._live[second] = (numbers[1], "first", None)
        await write("ReleaseNumber", (third,), id=third)
        del self._live[third]
        buckets = await write("BulkReleaseNumbers", (first, fourth), ids=[first, third, fourth])
        assert buckets == {"released": [first, fourth], "already_released": [third], "unknown": []}
        del self._live[first], self._live[fourth]

    def _know(self, rows: list[dict[str, Any]], label: str | None) -> None:
        for row in rows:
            self._live[row["id"]] = (row["number"], label, None)

    # ---------------------------------------------------------------- what the database holds

    def verify(self) -> None:
        """Fail unless the database holds every acknowledged write once, no refused one, and every invariant."""
        print(Counter((write.rpc, bool(write.bodies)) for write in self.sent))
        with self.engine.connect() as connection:
            ids = {"ids": [customer.id for customer in self._customers]}
            stored = {(row.organization_id, row.key): row for row in connection.execute(STORED, ids)}
            live = {row.id: (row.number, row.label, row.campaign_id) for row in connection.execute(LIVE, ids)}
            held = set(connection.execute(HELD, ids).scalars())
        self._verify_responses(stored)
        known = self._live.items()
        assert {id_: row for id_, row in known if not {id_, row[0]} & self._unclear}.items() <= live.items()
        # What nobody knows was ordered by a write that was given up.
        unknown = {number for id_, (number, *_) in live.items() if id_ not in self._live}
        assert all(number in self._unclear or number.startswith(f"+1{self._area_code}") for number in unknown)
        assert held - self._unclear == self._held - self._unclear
        assert violations(self.engine) == []

    def _verify_responses(self, stored: dict[tuple[UUID, str], Any]) -> None:
        keys = {(write.customer.id, write.key) for write in self.sent}
        assert stored.keys() <= keys, "a write that no client sent"
        for write in self.sent:
            row = stored.get((write.customer.id, write.key))
            assert not (write.bodies and row is None), f"an acknowledged write is lost: {write}"
            assert not (write.is_certainly_not_done and row), f"done, though every response was a refusal: {write}"
            assert row is None or row.rpc == write.rpc
            assert all(body == _body(row) for body in write.bodies), f"not the stored response: {write}"


def _body(row: Any) -> dict[str, Any]:
    """A stored response, as REST returns it."""
    message = GetMessageClass(SERVICE.methods_by_name[row.rpc].output_type).FromString(row.answer)
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return dict(MessageToDict(message, **options))
