"""The check finds stored responses that do not match their order."""

from uuid import UUID

import pytest
from sqlalchemy import text

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersResponse, PhoneNumber
from server.store import check
from tests.admin.conftest import COUNT_1, COUNT_3, NO_COUNT, TWO_MORE_NUMBERS

STORE_RESPONSE = "INSERT INTO idempotency_key VALUES (:organization, 'k', '', :of_order, :response, now())"
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
    released = "UPDATE assignment SET released_at = now() WHERE id = :assignment"
    unassigned = "UPDATE phone_number SET assignment_id = NULL WHERE number = :number"
    assert damage(released, unassigned) == []


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
    monkeypatch.setattr(check, "RESPONSES_ROWS", 2)
    keys = "SELECT :organization, 'k' || i, '', :order, 'x', now() FROM generate_series(1, 7) i"
    assert len(damage(f"INSERT INTO idempotency_key {keys}")) == 7
