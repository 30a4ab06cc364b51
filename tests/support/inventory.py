"""Numbers with an area code of their own, what the database has about numbers, and time that passes."""

import itertools
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, insert, text

from server.store.tables import phone_number
from tests.support.callers import ULID, Response, failure
from tests.support.customer import Customer
from tests.support.retries import in_transaction

PRICE = "1.00"
"""What a number of `stock` costs, unless the test says something else."""

# Other tests have numbers with the area codes 415 and 900.
_area_codes = (str(code) for code in itertools.chain(range(200, 415), range(416, 900)))
_serials = itertools.count(2_000_000)


def new_area_code() -> str:
    """An area code that no other test uses."""
    return next(_area_codes)


def stock(customer: Customer, area_code: str, count: int = 1, **columns: Any) -> list[str]:
    """Add numbers of an area code to the inventory, at one credit each. `columns` are other values for their rows."""
    return add(customer.engine, [f"+1{area_code}{next(_serials)}" for _ in range(count)], **columns)


def add(engine: Engine, numbers: list[str], **columns: Any) -> list[str]:
    """Add these numbers to the inventory."""
    row = {"number_type": "local", "sms_enabled": True, "mms_enabled": False, "price_micros": 1_000_000, **columns}
    rows = [{"number": number, **row} for number in numbers]
    in_transaction(engine, lambda connection: connection.execute(insert(phone_number), rows))
    return numbers


def available_row(number: str, **more: Any) -> dict[str, Any]:
    """What a search returns for a number of `stock`."""
    return {"number": number, "number_type": "local", "sms_enabled": True, "mms_enabled": False, "price": PRICE, **more}


# ---------------------------------------------------------------- what the database has


def values_of(customer: Customer, query: str, **parameters: Any) -> list[Any]:
    """The first column of each row that a query finds."""
    return in_transaction(
        customer.engine, lambda connection: list(connection.execute(text(query), parameters).scalars())
    )


def inventory_row(customer: Customer, number: str) -> dict[str, Any]:
    """The row of a number in the inventory."""
    (row,) = values_of(customer, "SELECT to_jsonb(p) FROM phone_number p WHERE number = :number", number=number)
    return dict(row)


NUMBER = """
    SELECT jsonb_strip_nulls(jsonb_build_object(
        'id', a.id, 'number', a.number, 'number_type', p.number_type, 'inbound_url', a.inbound_url,
        'status_url', a.status_url, 'label', a.label, 'campaign_id', a.campaign_id, 'sms_enabled', p.sms_enabled,
        'mms_enabled', p.mms_enabled, 'created_at', to_char(a.created_at AT TIME ZONE 'UTC', :seconds),
        'updated_at', to_char(a.updated_at AT TIME ZONE 'UTC', :seconds)))
    FROM assignment a JOIN phone_number p USING (number)
    WHERE a.organization_id = :organization_id AND a.id = CAST(:id AS uuid)
"""


def stored_number(customer: Customer, id_: str) -> dict[str, Any]:
    """A number of the customer as a response should have it, made from the rows of the database."""
    seconds = 'YYYY-MM-DD"T"HH24:MI:SS"Z"'
    (row,) = values_of(customer, NUMBER, organization_id=customer.id, id=id_, seconds=seconds)
    return dict(row)


TABLES_OF_CUSTOMERS = ("orders", "assignment", "ledger_entry", "idempotency_key", "hold", "number_event")
EVERYTHING = " UNION ALL ".join(
    f"SELECT '{table} ' || to_jsonb(t)::text FROM {table} t WHERE organization_id = :id"
    for table in TABLES_OF_CUSTOMERS
)
NUMBERS = """
    SELECT 'phone_number ' || to_jsonb(p)::text FROM phone_number p
    WHERE held_by = :id OR number IN (SELECT number FROM assignment WHERE organization_id = :id)
"""
ORGANIZATION = "SELECT 'organization ' || (to_jsonb(o) - 'revision')::text FROM organization o WHERE id = :id"


def all_rows(customer: Customer) -> list[str]:
    """All rows of the customer that a call can write, with all their values."""
    return sorted(values_of(customer, f"{EVERYTHING} UNION ALL {NUMBERS} UNION ALL {ORGANIZATION}", id=customer.id))


# ---------------------------------------------------------------- time


PASS = (
    "UPDATE orders SET created_at = created_at - :by WHERE organization_id = :id",
    "UPDATE ledger_entry SET created_at = created_at - :by WHERE organization_id = :id",
    """
    UPDATE assignment
    SET created_at = created_at - :by, updated_at = updated_at - :by, released_at = released_at - :by
    WHERE organization_id = :id
    """,
    """
    UPDATE hold SET created_at = created_at - :by, expires_at = expires_at - :by, released_at = released_at - :by
    WHERE organization_id = :id
    """,
    "UPDATE phone_number SET free_at = free_at - :by, rest_until = rest_until - :by WHERE held_by = :id",
    """
    UPDATE number_event
    SET created_at = created_at - :by, after = (
        SELECT coalesce(jsonb_object_agg(
            key, CASE WHEN key LIKE '%_at' THEN to_jsonb((value #>> '{}')::timestamptz - :by) ELSE value END), '{}')
        FROM jsonb_each(after)
      )
    WHERE organization_id = :id
    """,
    # A rest that is over may be of a number that another organization holds now, or none. It moves with its release.
    """
    UPDATE phone_number SET rest_until = last.available_at
    FROM (
      SELECT DISTINCT ON (number) number, (after ->> 'available_at')::timestamptz AS available_at
      FROM number_event
      WHERE kind = 'released'
        AND number IN (SELECT number FROM number_event WHERE organization_id = :id)
      ORDER BY number, created_at DESC
    ) last
    WHERE phone_number.number = last.number AND phone_number.rest_until IS NOT NULL
    """,
)


def let_time_pass(customer: Customer, **duration: int) -> None:
    """Move all that the customer did into the past: `let_time_pass(customer, minutes=10)`."""

    def move(connection: Connection) -> None:
        for statement in PASS:
            connection.execute(text(statement), {"by": timedelta(**duration), "id": customer.id})

    in_transaction(customer.engine, move)


# ---------------------------------------------------------------- responses


def success(data: Any, **more: Any) -> dict[str, Any]:
    """The documented envelope of a success."""
    return {"success": True, "data": data, **more}


def assert_success(response: Response, data: Any, **more: Any) -> None:
    """The whole response is a success with these data."""
    assert (response.status, response.body) == (200, success(data, **more))
    assert ULID.fullmatch(response.request_id)


def assert_refused(response: Response, status: int, code: str, message: str, **more: Any) -> None:
    """The whole response is this refusal."""
    assert (response.status, response.body) == (status, failure(code, message, response.request_id, **more))
    assert ULID.fullmatch(response.request_id)


def assert_invalid(response: Response, status: int = 422, **details: str) -> None:
    """The whole response is a refusal for these fields."""
    assert_refused(response, status, "VALIDATION_FAILED", "validation failed", details=details)


def assert_not_found(response: Response) -> None:
    assert_refused(response, 404, "NOT_FOUND", "not found")


def assert_shortage(response: Response, requested: int, unavailable: list[str]) -> None:
    """The whole response says that these numbers are not available."""
    available = requested - len(unavailable)
    message = f"insufficient inventory: requested {requested}, available {available}"
    data = {"available_count": available, "unavailable": unavailable}
    assert_refused(response, 409, "INSUFFICIENT_INVENTORY", message, data=data)
