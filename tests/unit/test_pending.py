"""The queue of waiting orders, where time passes while it is looked at."""

from uuid_utils.compat import uuid7

from server.pending import PendingOrder, Queue
from server.rules.values import Order


def pending(organization_id):
    order = Order(str(uuid7()), organization_id, str(uuid7()), "numbers:write", "", ("+12",), (str(uuid7()),))
    return PendingOrder(order, 0.0, None, None)


def test_an_order_whose_time_is_up_while_we_look_is_not_lost(monkeypatch):
    """Nobody would ever end it: its place in the queue stays taken, and the server does not stop."""
    queue, orders = Queue(), [pending(organization) for organization in "aabb"]
    for order in orders:
        queue.put(order)
    looks = iter([True, False, True, True] + [False] * 20)
    monkeypatch.setattr(PendingOrder, "is_wanted", property(lambda order: next(looks)))
    assert queue.take_unwanted() == [orders[1]]
    assert queue.length == 3
    assert queue.take(10, 10) == [orders[0], orders[2], orders[3]]
    assert queue.length == 0
