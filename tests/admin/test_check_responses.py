"""The check finds stored responses that do not match their order, or are none of their RPC."""

from uuid import UUID

import pytest
from sqlalchemy import text

from ordernumbers.v1.inventory_pb2 import Hold, HoldNumbersResponse
from ordernumbers.v1.orders_pb2 import BulkOrder, BulkOrderNumbersResponse, OrderNumbersResponse
from ordernumbers.v1.phone_numbers_pb2 import PhoneNumber
from server.store import stored_responses
from tests.admin.conftest import COUNT_1, COUNT_3, NO_COUNT, RELEASE, REST, TWO_MORE_NUMBERS

STORE_RESPONSE = "INSERT INTO idempotency_key VALUES (:organization, 'k', '', :of_order, :response, now())"
STORE_OTHER_RESPONSE = """
    INSERT INTO idempotency_key VALUES (:organization, 'k', '', :of_order, :response, now(), :method)
"""
UNKNOWN = UUID(int=7)


def response_with(*rows):
    return OrderNumbersResponse(
        success=True, data=[PhoneNumber(id=str(id_), number=number) for id_, number in rows]
    ).SerializeToString()


def mismatch(sold):
    key = f"an idempotency key of organization {sold['organization']}"
    return f"{key} has a stored response that does not match order {sold['order']}"


@pytest.mark.parametrize(
    ("order", "response", "finding"),
    [
        (UNKNOWN, "x", f"is for order {UNKNOWN}, which does not exist"),
        (None, "", "has no stored response for order {order}"),
        (None, "x", "has a stored response that does not match order {order}"),
    ],
)
def test_an_idempotency_key_without_its_order_or_response_is_found(damage, sold, order, response, finding):
    found = damage(STORE_RESPONSE, of_order=order or sold["order"], response=response.encode())
    assert found == [f"an idempotency key of organization {sold['organization']} {finding.format(**sold)}"]


@pytest.mark.parametrize("count", [COUNT_1, NO_COUNT], ids=["with count", "without count"])
def test_a_stored_response_that_matches_its_order_is_no_violation(damage, sold, count):
    response = response_with((sold["assignment"], sold["number"]))
    assert damage(*count, STORE_RESPONSE, of_order=sold["order"], response=response) == []
    assert damage(*RELEASE, REST) == []


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([("{assignment}", "+19")], COUNT_1),
        ([(str(UNKNOWN), "{number}")], COUNT_1),
        ([("no id", "{number}")], COUNT_1),
        ([("{assignment}", "{number}")] * 2, NO_COUNT),
        ([("{assignment}", "{number}")], (*COUNT_3, *TWO_MORE_NUMBERS)),
        ([], NO_COUNT),
    ],
    ids=["another number", "another id", "no id", "a number twice", "one of three", "nothing"],
)
def test_a_stored_response_with_other_assignments_than_its_order_is_found(damage, sold, rows, count):
    response = response_with(*((id_.format(**sold), number.format(**sold)) for id_, number in rows))
    found = damage(*count, STORE_RESPONSE, of_order=sold["order"], response=response)
    assert found == [mismatch(sold)]


def test_a_stored_response_with_an_assignment_of_another_order_is_found(damage, damaged, sold):
    with damaged.engine.connect() as connection:
        query = text("SELECT id, number FROM assignment WHERE id <> :assignment")
        response = response_with(connection.execute(query, sold).one())
    assert damage(STORE_RESPONSE, of_order=sold["order"], response=response) == [mismatch(sold)]


def test_every_stored_response_is_checked(damage, sold, monkeypatch):
    monkeypatch.setattr(stored_responses, "RESPONSES_ROWS", 2)
    keys = "SELECT :organization, 'k' || i, '', :order, 'x', now() FROM generate_series(1, 7) i"
    assert len(damage(f"INSERT INTO idempotency_key {keys}")) == 7


# ---------------------------------------------------------------- responses to other RPCs


def bulk_response_with(*rows):
    numbers = [PhoneNumber(id=str(id_), number=number) for id_, number in rows]
    data = BulkOrder(quantity=len(rows), assigned_numbers=numbers)
    return BulkOrderNumbersResponse(success=True, data=data).SerializeToString()


def test_a_response_to_a_bulk_order_that_matches_it_is_no_violation(damage, sold):
    response, method = bulk_response_with((sold["assignment"], sold["number"])), "BulkOrderNumbers"
    assert damage(STORE_OTHER_RESPONSE, of_order=sold["order"], response=response, method=method) == []


@pytest.mark.parametrize("is_bulk", [False, True])
def test_a_response_to_another_bulk_order_or_to_another_rpc_is_found(damage, sold, is_bulk):
    response = bulk_response_with((UNKNOWN, sold["number"])) if is_bulk else HELD
    found = damage(STORE_OTHER_RESPONSE, of_order=sold["order"], response=response, method="BulkOrderNumbers")
    assert found == [mismatch(sold)]


def test_a_response_to_a_bulk_order_that_does_not_exist_is_found(damage, sold):
    found = damage(STORE_OTHER_RESPONSE, of_order=UNKNOWN, response=HELD, method="BulkOrderNumbers")
    assert found == [
        f"an idempotency key of organization {sold['organization']} is for order {UNKNOWN}, which does not exist"
    ]


HELD = HoldNumbersResponse(success=True, data=Hold(id="h", numbers=["+14155550100"])).SerializeToString()


@pytest.mark.parametrize("method", ["HoldNumbers", "ARpcOfALaterVersion"])
def test_a_response_to_another_write_needs_no_order(damage, method):
    assert damage(STORE_OTHER_RESPONSE, of_order=UNKNOWN, response=HELD, method=method) == []


@pytest.mark.parametrize(
    ("method", "response"),
    [
        ("HoldNumbers", b"x"),
        ("ReleaseNumber", HELD),
        ("HoldNumbers", HoldNumbersResponse(success=True).SerializeToString()),
        ("HoldNumbers", HoldNumbersResponse(data=Hold(id="h")).SerializeToString()),
    ],
    ids=["not a message", "of another RPC", "without data", "no success"],
)
def test_a_response_that_its_rpc_does_not_give_is_found(damage, sold, method, response):
    found = damage(STORE_OTHER_RESPONSE, of_order=UNKNOWN, response=response, method=method)
    assert found == [
        f"an idempotency key of organization {sold['organization']} has a stored response that is not one of {method}"
    ]


def test_an_idempotency_key_of_another_write_without_a_response_is_found(damage, sold):
    found = damage(STORE_OTHER_RESPONSE, of_order=UNKNOWN, response=b"", method="HoldNumbers")
    key = f"an idempotency key of organization {sold['organization']}"
    assert found == [f"{key} has no stored response for the write {UNKNOWN}"]
