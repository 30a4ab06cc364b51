"""Orders whose COMMIT was sent without a result."""

import asyncio
import os
import signal
from uuid import UUID

import pytest

from ordernumbers.v1.orders_pb2 import OrderNumbersResponse
from server.errors import Code
from server.rules.values import Idempotency
from server.store import orders
from server.store.transaction import OutcomeUnknown
from tests.support.batcher import run
from tests.support.orders import order_of
from tests.support.stack import wait_until


@pytest.fixture
def cut_at_commit(monkeypatch):
    """Make the next transactions lose their connection after the write was sent. `then` commits it, or does not."""

    def arm(times, then):
        finish, left = orders.finish, [times]

        async def cut(connection, statements, sent):
            if not left[0] or not sent:
                return await finish(connection, statements, sent)
            left[0] -= 1
            await then(connection, finish(connection, statements, sent))
            connection.cut()
            raise OutcomeUnknown(sent)

        monkeypatch.setattr(orders, "finish", cut)

    return arm


async def committed(connection, finish):
    await finish


async def lost(connection, finish):
    finish.close()


@pytest.mark.parametrize("then", [committed, lost])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("is_keyed", [False, True])
def test_an_unknown_outcome_is_looked_up_and_returned(database, customer, cut_at_commit, then, times, is_keyed):
    numbers = customer.numbers(8)
    cut_at_commit(times, then)

    async def work(batcher):
        plain = (order_of(customer, number) for number in numbers)
        asked = [o._replace(idempotency=Idempotency(o.id, b"") if is_keyed else None) for o in plain]
        return await asyncio.gather(*(batcher.place(o, 10) for o in asked))

    responses = run(database.url, work)
    assert assigned(*responses) == customer.assignment_ids()
    assert len(assigned(*responses)) == 8
    assert not any(response.is_replayed for response in responses)


def assigned(*responses):
    return {UUID(row.id) for response in responses for row in OrderNumbersResponse.FromString(response.message).data}


@pytest.mark.parametrize("deadline_seconds", [1.0, 10.0])
def test_a_commit_that_is_still_running_is_not_taken_for_a_rollback(
    database, customer, cut_at_commit, deadline_seconds
):
    """Its backend is frozen. The order is not visible when we look, and is carried out later."""
    (number,) = customer.numbers(1)
    frozen = []

    async def freeze(connection, finish):
        frozen.append(connection.backend_pid)
        os.kill(frozen[0], signal.SIGSTOP)
        sending = asyncio.create_task(finish)
        await asyncio.wait({sending}, timeout=0.1)
        sending.cancel()
        await asyncio.wait({sending})

    cut_at_commit(1, freeze)

    async def work(batcher):
        waiting = asyncio.create_task(
            batcher.place(order_of(customer, number), deadline_seconds),
        )
        await asyncio.wait({waiting}, timeout=1.5)
        os.kill(frozen[0], signal.SIGCONT)
        return await asyncio.gather(waiting, return_exceptions=True)

    (response,) = run(database.url, work, lock_timeout_ms=20)
    wait_until(customer.owned)
    if deadline_seconds < 1.5:
        assert response.code is Code.TIMEOUT
    else:
        assert assigned(response) == customer.assignment_ids()
