"""The queue of pending orders, while time passes during its methods."""

import asyncio
from uuid import UUID

import pytest

from server.errors import Code, Refusal
from server.pending import PendingWrite, Queue
from tests.support.orders import make_order


def pending(organization_id):
    return PendingWrite(make_order(organization_id, "+12"), 0.0, None, None, None)


def test_an_order_that_expires_during_take_unwanted_is_not_lost(monkeypatch):
    """Otherwise nothing would ever end it, and the server could not stop."""
    queue, orders = Queue(), [pending(organization) for organization in "aabb"]
    for order in orders:
        queue.put(order)
    looks = iter([True, False, True, True] + [False] * 20)
    monkeypatch.setattr(PendingWrite, "is_wanted", property(lambda order: next(looks)))
    assert queue.take_unwanted() == [orders[1]]
    assert queue.length == 3
    assert queue.take(10, 10, 64) == [orders[0], orders[2], orders[3]]
    assert queue.length == 0


def queue(*organizations, numbers=1):
    waiting = Queue()
    for i, organization in enumerate(organizations):
        numbers_of_it = [f"+{i}{j}" for j in range(numbers)]
        waiting.put(PendingWrite(make_order(UUID(int=organization), *numbers_of_it), 0.0, None, None, None))
    return waiting


def organizations(batch):
    return [UUID(waiting.write.organization_id).int for waiting in batch]


def test_organizations_take_turns():
    waiting = queue(1, 1, 1, 1, 1, 2, 3, 2)
    assert organizations(waiting.take(4, 500, 64)) == [1, 2, 3, 1]
    assert organizations(waiting.take(4, 500, 64)) == [2, 1, 1, 1]
    assert waiting.take(4, 500, 64) == []


def test_an_organization_has_at_most_its_share_of_a_batch():
    waiting = queue(1, 1, 1, 1, 1, 2, 3, 3)
    assert organizations(waiting.take(64, 500, 2)) == [1, 2, 3, 1, 3]
    assert organizations(waiting.take(64, 500, 2)) == [1, 1]
    assert organizations(waiting.take(64, 500, 2)) == [1]
    assert (waiting.length, waiting.take(64, 500, 2)) == (0, [])


def test_a_batch_has_at_most_numbers_max_but_always_one_order():
    waiting = queue(1, 2, 3, numbers=40)
    assert organizations(waiting.take(64, 100, 64)) == [1, 2]
    assert organizations(waiting.take(64, 1, 64)) == [3]


def test_an_order_that_did_not_fit_is_the_first_of_the_next_batch():
    waiting = queue(1, 2, 3, 1, numbers=40)
    assert organizations(waiting.take(64, 100, 64)) == [1, 2]
    assert organizations(waiting.take(64, 100, 64)) == [3, 1]


def test_organizations_take_turns_on_the_retry_connections():
    waiting = queue(1, 1, 1, 2, 3)
    taken = [waiting.take_without({"+10"}) for _ in range(4)]
    assert [UUID(pending.write.organization_id).int for pending in taken] == [1, 2, 3, 1]
    assert [pending.write.numbers for pending in taken] == [("+00",), ("+30",), ("+40",), ("+20",)]
    assert waiting.take_without({"+10"}) is None
    assert waiting.length == 1


def test_a_response_that_cannot_be_made_fails_its_own_call_only():
    async def main():
        ended = []
        caller = asyncio.get_running_loop().create_future()

        def fail(decision):
            raise ValueError("no response")

        PendingWrite(make_order("a", "+12"), 0.0, caller, fail, ended.append).end(Refusal(Code.UNAVAILABLE))
        assert len(ended) == 1
        with pytest.raises(ValueError, match="no response"):
            await caller

    asyncio.run(main())
