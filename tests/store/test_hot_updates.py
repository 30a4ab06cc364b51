"""Sales, holds and releases stay HOT updates of phone_number: no index names what they change, and pages have room."""

import asyncio

import pytest
from sqlalchemy import text

from server.config import Settings
from server.rules.values import EndHold, Hold, Release
from server.store import orders, writes
from server.store.connection import connect
from server.store.inventory import import_csv
from server.store.orders import place
from server.store.writes import carry_out
from tests.support.customer import Customer
from tests.support.orders import order_of
from tests.support.stack import wait_until
from tests.support.writes import HELD_MAX, LIMITS, REST_MS, write_of

NUMBERS = [f"+1415{i}" for i in range(2_000_000, 2_010_000)]
SCATTERED = NUMBERS[7::25]
BLOCKS = [NUMBERS[first : first + 100] for first in range(300, 10_000, 1000)]
UPDATES = text("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'phone_number'")
SHARE_MIN_IN_BLOCKS = 0.8


@pytest.fixture
def stocked(database):
    """A customer, and an inventory that was imported as an operator does it."""
    header = "number,number_type,sms_enabled,mms_enabled,price"
    import_csv(database.engine, [header, *(f"{number},local,true,false,1" for number in NUMBERS)])
    return Customer.open(database.engine)


def hot_share(database, count, work):
    """The share of HOT updates among the `count` updates of numbers that `work(connection)` makes."""
    before = updates(database)

    async def run():
        connection = await connect(database.url, Settings(), dict.fromkeys((*orders.STATEMENTS, *writes.STATEMENTS)))
        try:
            return await work(connection)
        finally:
            await connection.close()  # only now PostgreSQL counts its updates

    result = asyncio.run(run())
    wait_until(lambda: updates(database)[0] == before[0] + count)
    return result, (updates(database)[1] - before[1]) / count


def updates(database):
    with database.engine.connect() as connection:
        return connection.execute(UPDATES).one()


def sale(customer, parts):
    async def sell(connection):
        ids = []
        for numbers in parts:
            order = order_of(customer, *numbers)
            await place(connection, [order], LIMITS)
            ids.append(order.assignment_ids)
        return ids

    return sell


def writing(customer, actions):
    async def write(connection):
        outcomes = [await carry_out(connection, write_of(customer, action), LIMITS) for action in actions]
        return [outcome.write.id for outcome in outcomes]

    return write


def test_every_sale_of_scattered_numbers_is_a_hot_update(database, stocked):
    _, share = hot_share(database, len(SCATTERED), sale(stocked, [[number] for number in SCATTERED]))
    assert share == 1


def test_most_numbers_of_blocks_stay_hot_through_their_whole_life(database, stocked):
    """Blocks of 100 consecutive numbers are held, ordered and released, each in one transaction."""
    count = 100 * len(BLOCKS)
    _, held = hot_share(database, count, writing(stocked, [Hold(tuple(b), 10, HELD_MAX) for b in BLOCKS]))
    ids, sold = hot_share(database, count, sale(stocked, BLOCKS))
    _, released = hot_share(database, count, writing(stocked, [Release(each, REST_MS, True) for each in ids]))
    print(f"HOT updates of blocks: holds {held:.0%}, sales {sold:.0%}, releases {released:.0%}")
    # A row grows most when it is held, so there HOT updates are fewest.
    assert held > 0.6
    assert min(sold, released) >= SHARE_MIN_IN_BLOCKS


def test_most_sales_of_blocks_are_hot_updates(database, stocked):
    _, share = hot_share(database, 100 * len(BLOCKS), sale(stocked, BLOCKS))
    print(f"HOT updates of blocks: sales {share:.0%}")
    assert share >= SHARE_MIN_IN_BLOCKS


def test_holds_and_their_ends_and_releases_of_scattered_numbers_are_hot_updates(database, stocked):
    numbers = SCATTERED[:100]
    holds, held = hot_share(database, 100, writing(stocked, [Hold((number,), 10, HELD_MAX) for number in numbers]))
    _, ended = hot_share(database, 100, writing(stocked, [EndHold(id_) for id_ in holds]))
    ids, _ = hot_share(database, 100, sale(stocked, [[number] for number in numbers]))
    _, released = hot_share(database, 100, writing(stocked, [Release(each, REST_MS, False) for each in ids]))
    assert (held, ended, released) == (1, 1, 1)
