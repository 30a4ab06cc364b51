"""Writes of several workers at SERIALIZABLE. They conflict again and again, and each is carried out once or refused.

`make test-serializable` runs the tests of the other files at SERIALIZABLE, too.
"""

import asyncio
import random
from collections import Counter

import pytest
from uuid_utils.compat import uuid7

from server import metrics
from server.admission import Shared
from server.config import Settings, settings, variable_of
from server.errors import Code
from server.rules.values import Hold
from server.writing import Writer
from tests.support.batcher import new_batcher
from tests.support.batcher import outcome as outcome_of_order
from tests.support.customer import Customer
from tests.support.inventory import values_of
from tests.support.orders import order_of
from tests.support.writes import KINDS, keyed, outcome, write_of

WORKERS = 4
SECONDS_MAX = 60.0


@pytest.fixture(autouse=True)
def _serializable(database):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable_of("isolation"), "serializable")
        settings.cache_clear()
        yield
    settings.cache_clear()


def conflicts():
    return metrics.FAILED_ATTEMPTS["conflict",].value


def new_writer(url):
    return Writer(Settings(), url, Shared(Settings()))


def run(new_worker, url, work):
    """Do `work(workers)`, with workers that have connections of their own, as in separate processes."""

    async def main():
        workers = [new_worker(url) for _ in range(WORKERS)]
        try:
            return await work(workers)
        finally:
            await asyncio.gather(*(worker.close() for worker in workers))

    return asyncio.run(main())


def test_orders_of_the_same_few_numbers_are_placed_once_or_refused(database, customer):
    customers = [customer, Customer.open(database.engine), Customer.open(database.engine)]
    contested, before, rng = customer.numbers(30), conflicts(), random.Random(17)
    orders = [order_of(rng.choice(customers), *rng.sample(contested, rng.randint(1, 3))) for _ in range(300)]

    async def work(batchers):
        tries = (outcome_of_order(batchers[i % WORKERS], order, SECONDS_MAX) for i, order in enumerate(orders))
        return await asyncio.gather(*tries)

    codes = run(new_batcher, database.url, work)
    sold = [number for order, code in zip(orders, codes, strict=True) if code == "PLACED" for number in order.numbers]
    assert set(codes) == {"PLACED", Code.INSUFFICIENT_INVENTORY}
    assert len(sold) == len(set(sold))
    assert set(sold) == set().union(*(each.owned() for each in customers))
    assert sum(len(each.owned()) for each in customers) == len(sold)
    print(f"{conflicts() - before:.0f} transactions of {len(orders)} orders failed by a conflict")
    assert conflicts() > before


def test_holds_at_the_same_time_do_not_exceed_the_limit_together(database, customer):
    """Each sees the others' holds, or fails. At REPEATABLE READ each would see only those from before its locks."""
    holds = [write_of(customer, Hold((number,), 10, held_max=10)) for number in customer.numbers(40)]
    before = conflicts()

    async def work(writers):
        return await asyncio.gather(*(outcome(writers[i % WORKERS], hold, SECONDS_MAX) for i, hold in enumerate(holds)))

    assert Counter(run(new_writer, database.url, work)) == {"DONE": 10, Code.LIMIT_EXCEEDED: 30}
    assert values_of(customer, "SELECT count(*) FROM phone_number WHERE held_by = :id", id=customer.id) == [10]
    assert conflicts() > before


@pytest.mark.parametrize("kind", ["hold", "route"])
def test_writes_with_the_same_key_are_carried_out_once(database, customer, kind):
    write = keyed(KINDS[kind](database.url, customer))

    async def work(writers):
        attempts = [(writer, write._replace(id=str(uuid7()))) for writer in writers for _ in range(5)]
        return await asyncio.gather(*(writer.carry_out(each, SECONDS_MAX) for writer, each in attempts))

    responses = run(new_writer, database.url, work)
    assert len({response.message for response in responses}) == 1
    assert [response.is_replayed for response in responses].count(False) == 1
