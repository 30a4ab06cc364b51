"""Writes that are not orders of named numbers: one of each kind, and a writer on a real database."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from uuid_utils.compat import uuid7

from server.admission import Shared
from server.batching import Batcher
from server.config import Settings
from server.errors import Refusal
from server.rules.values import (
    Action,
    Choose,
    Criteria,
    EndHold,
    Hold,
    Idempotency,
    Release,
    Route,
    Routing,
    Write,
)
from server.store import orders, writes
from server.store.connection import connect
from server.store.transaction import Limits
from server.writing import Writer
from tests.support.customer import Customer
from tests.support.inventory import new_area_code, stock
from tests.support.orders import order_of
from tests.support.retries import retried

LIMITS = Limits(lock_seconds=0.2, statement_seconds=5.0)
REST_MS = 86_400_000
HELD_MAX = 1000


def write_of(customer: Customer, action: Action, **fields: Any) -> Write:
    """A write of a customer, with its key."""
    return Write(
        id=str(uuid7()),
        organization_id=str(customer.id),
        api_key_id=str(customer.key_id),
        scope="numbers:write",
        request_id="",
        action=action,
        **fields,
    )


def keyed(write: Write, key: str = "k", asked: bytes = b"what was asked") -> Write:
    return write._replace(idempotency=Idempotency(key, asked, type(write.action).__name__))


def carry_out(url: str, *written: Write, limits: Limits = LIMITS, **options: Any) -> list[Any]:
    """Carry out writes one after the other on one connection, without a writer. Return the outcomes."""

    async def run() -> list[Any]:
        connection = await connect(url, Settings(), writes.STATEMENTS)

        def attempt(write: Write) -> Awaitable[Any]:
            return retried(connection, lambda: writes.carry_out(connection, write, limits, **options))

        try:
            return [await attempt(write) for write in written]
        finally:
            await connection.close()

    return asyncio.run(run())


def buy(url: str, customer: Customer, *numbers: str, **fields: Any) -> list[str]:
    """Order numbers, and return the ids of the assignments."""
    order = order_of(customer, *numbers, **fields)

    async def run() -> None:
        connection = await connect(url, Settings(), orders.STATEMENTS)
        try:
            await retried(connection, lambda: orders.place(connection, [order], LIMITS))
        finally:
            await connection.close()

    asyncio.run(run())
    return list(order.assignment_ids)


# ---------------------------------------------------------------- one write of each kind


def hold(url: str, customer: Customer) -> Write:
    return write_of(customer, Hold(tuple(customer.numbers(2)), 10, HELD_MAX))


def end_hold(url: str, customer: Customer) -> Write:
    made = hold(url, customer)
    carry_out(url, made)
    return write_of(customer, EndHold(made.id))


def end_hold_that_keeps_nothing(url: str, customer: Customer) -> Write:
    made = hold(url, customer)
    carry_out(url, made)
    buy(url, customer, *made.numbers)
    return write_of(customer, EndHold(made.id))


def route(url: str, customer: Customer) -> Write:
    (id_,) = buy(url, customer, *customer.numbers(1), routing=Routing(label="old"))
    return write_of(customer, Route(id_, {"label": "new"}))


def route_without_a_change(url: str, customer: Customer) -> Write:
    (id_,) = buy(url, customer, *customer.numbers(1), routing=Routing(label="same"))
    return write_of(customer, Route(id_, {"label": "same"}))


def release(url: str, customer: Customer) -> Write:
    (id_,) = buy(url, customer, *customer.numbers(1), routing=Routing(label="old"))
    return write_of(customer, Release((id_,), REST_MS, is_bulk=False))


def bulk_release(url: str, customer: Customer) -> Write:
    ids = buy(url, customer, *customer.numbers(3))
    return write_of(customer, Release((*ids, str(uuid7())), REST_MS, is_bulk=True))


def bulk_release_of_nothing(url: str, customer: Customer) -> Write:
    return write_of(customer, Release((str(uuid7()),), REST_MS, is_bulk=True))


def bulk_order(url: str, customer: Customer) -> Write:
    area_code = new_area_code()
    stock(customer, area_code, 5)
    write = write_of(customer, Choose(2, Criteria(area_code), (), Routing(label="many")))
    # After the order's id: that order of the ids is how the assignments of an order are found.
    return write._replace(action=write.action._replace(assignment_ids=(str(uuid7()), str(uuid7()))))


KINDS: dict[str, Callable[[str, Customer], Write]] = {
    made.__name__.replace("_", " "): made
    for made in (
        hold,
        end_hold,
        end_hold_that_keeps_nothing,
        route,
        route_without_a_change,
        release,
        bulk_release,
        bulk_release_of_nothing,
        bulk_order,
    )
}
"""By name, a function that prepares what a write of the kind needs, and returns the write."""
CHANGING = [name for name in KINDS if name not in ("route without a change", "bulk release of nothing")]
"""The kinds that change something even without an idempotency key."""


# ---------------------------------------------------------------- a writer


def run(url: str, work: Callable[[Writer], Any], **settings: Any) -> Any:
    """Do `work(writer)` with a writer on that database."""
    return run_both(url, lambda _, writer: work(writer), **settings)


def run_both(url: str, work: Callable[[Batcher, Writer], Any], **settings: Any) -> Any:
    """Do `work(batcher, writer)` with the two of one worker."""

    async def main() -> Any:
        chosen = Settings(order_connections=1, **settings)
        shared = Shared(chosen)
        batcher, writer = Batcher(chosen, url, shared), Writer(chosen, url, shared)
        try:
            return await work(batcher, writer)
        finally:
            await batcher.close()
            await writer.close()

    return asyncio.run(main())


async def outcome(writer: Writer, write: Write, timeout_seconds: float = 10.0) -> Any:
    """ "DONE", or the code of the refusal."""
    try:
        return "DONE" if await writer.carry_out(write, timeout_seconds) else None
    except Refusal as refusal:
        return refusal.code
