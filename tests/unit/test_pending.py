"""The queue of pending orders, while time passes during its methods."""

from uuid_utils.compat import uuid7

from server.pending import PendingOrder, Queue
from server.rules.values import Order


def pending(organization_id):
    order = Order(str(uuid7()), organization_id, str(uuid7()), "numbers:write", "", ("+12",), (str(uuid7()),))
    return PendingOrder(order, 0.0, None, None)


def test_an_order_that_expires_during_take_unwanted_is_not_lost(monkeypatch):
    """Otherwise nothing would ever end it, and the server could not stop."""
    queue, orders = Queue(), [pending(organization) for organization in "aabb"]
    for order in orders:
        queue.put(order)
    looks = iter([True, False, True, True] + [False] * 20)
    monkeypatch.setattr(PendingOrder, "is_wanted", property(lambda order: next(looks)))
    assert queue.take_unwanted() == [orders[1]]
    assert queue.length == 3
    assert queue.take(10, 10) == [orders[0], orders[2], orders[3]]
    assert queue.length == 0
