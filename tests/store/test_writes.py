"""The transaction of writes that are not orders: what it stores, whom it obeys, and what it locks in which order."""

import threading
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from ordernumbers.v1.orders_pb2 import BulkOrderNumbersResponse
from server.errors import Code, Refusal
from server.rules.values import (
    Choose,
    Criteria,
    Done,
    EndHold,
    Hold,
    Idempotency,
    Release,
    Replayed,
    Retry,
    Route,
    Routing,
)
from server.store.transaction import Limits
from tests.store.conftest import in_disorder
from tests.support.inventory import all_rows, inventory_row, let_time_pass, new_area_code, stock, values_of
from tests.support.writes import HELD_MAX, KINDS, REST_MS, buy, carry_out, keyed, write_of

PATIENT = Limits(lock_seconds=20, statement_seconds=20)
EVENTS = """
    SELECT to_jsonb(e) - 'created_at' - 'number' - 'api_key_id' - 'organization_id'
    FROM number_event e WHERE number = :number AND created_at = :at
"""
each_kind = pytest.mark.parametrize("kind", KINDS)


def done(database, write, **options):
    (outcome,) = carry_out(database.url, write, **options)
    assert isinstance(outcome, Done), outcome
    return outcome


def code(database, write):
    (outcome,) = carry_out(database.url, write)
    return outcome.code if isinstance(outcome, Refusal) else "DONE"


def events(customer, number, outcome):
    """The events of a number at the time of an outcome. Each names the key and the organization of the customer."""
    whose = "SELECT organization_id::text || api_key_id::text FROM number_event WHERE number = :number"
    assert set(values_of(customer, whose, number=number)) == {f"{customer.id}{customer.key_id}"}
    return values_of(customer, EVENTS, number=number, at=outcome.at)


# ---------------------------------------------------------------- idempotency keys


@each_kind
def test_a_response_is_stored_with_everything_that_a_replay_needs(database, customer, kind):
    write = keyed(KINDS[kind](database.url, customer), "my-key", b"asked")
    outcome = done(database, write)
    with database.engine.connect() as connection:
        ((*stored,),) = connection.execute(
            text("SELECT organization_id, key, fingerprint, order_id, answer, method, created_at FROM idempotency_key")
        )
    method = write.idempotency.method
    assert stored == [customer.id, "my-key", b"asked", UUID(write.id), outcome.response, method, outcome.at]


@each_kind
def test_the_same_write_again_gets_the_stored_response_and_changes_nothing(database, customer, kind):
    write = keyed(KINDS[kind](database.url, customer))
    first = done(database, write)
    before = all_rows(customer)
    again, other = carry_out(
        database.url,
        write._replace(id=str(uuid4())),
        write._replace(idempotency=Idempotency("k", b"something else", "Hold")),
    )
    assert again == Replayed(first.response)
    assert other.code is Code.IDEMPOTENCY_KEY_REUSED
    assert all_rows(customer) == before


@each_kind
def test_a_refused_write_leaves_nothing_and_its_key_free(database, customer, kind):
    write = keyed(KINDS[kind](database.url, customer))
    before = all_rows(customer)
    assert code(database, write._replace(scope="other:scope")) is Code.FORBIDDEN
    assert code(database, write._replace(api_key_id=str(uuid4()))) is Code.UNAUTHORIZED
    assert all_rows(customer) == before
    done(database, write)


# ---------------------------------------------------------------- revocation


@each_kind
def test_a_write_waits_for_a_running_revocation_and_is_then_refused(
    database, customer, until_a_transaction_waits, kind
):
    write = keyed(KINDS[kind](database.url, customer))
    before = all_rows(customer)
    outcomes = []
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE organization SET revision = revision + 1"))
        writer = threading.Thread(target=lambda: outcomes.extend(carry_out(database.url, write, limits=PATIENT)))
        writer.start()
        until_a_transaction_waits()
        connection.execute(text("UPDATE api_key SET revoked_at = clock_timestamp()"))
    writer.join()
    assert [outcome.code for outcome in outcomes] == [Code.UNAUTHORIZED]
    assert all_rows(customer) == before


# ---------------------------------------------------------------- what is stored


def test_every_field_of_a_hold_is_stored(database, customer):
    numbers = tuple(reversed(customer.numbers(2)))
    write = write_of(customer, Hold(numbers, 7, HELD_MAX))._replace(request_id="01M854FAVJYDMKM278")
    outcome = done(database, write)
    expires_at = outcome.at + timedelta(minutes=7)
    with database.engine.connect() as connection:
        ((*stored,),) = connection.execute(text("SELECT * FROM hold"))
    assert stored == [
        *(customer.id, UUID(write.id), customer.key_id),
        *("01M854FAVJYDMKM278", list(numbers), outcome.at, expires_at, None),
    ]
    for number in numbers:
        row = inventory_row(customer, number)
        assert (row["held_by"], row["hold_id"], row["assignment_id"]) == (str(customer.id), write.id, None)
        (event,) = events(customer, number, outcome)
        assert event.pop("after").keys() == {"expires_at"}
        assert event == {"id": write.id, "kind": "held", "request_id": "01M854FAVJYDMKM278", "before": {}}


def test_every_field_of_a_change_is_stored(database, customer):
    before = Routing("https://example.com/1", "https://example.com/2", "old", str(customer.campaign()))
    after = Routing("https://example.com/3", None, "new", str(customer.campaign()))
    (number,) = customer.numbers(1)
    (id_,) = buy(database.url, customer, number, routing=before)
    outcome = done(database, write_of(customer, Route(id_, after._asdict())))
    with database.engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM assignment"))
    assert Routing(row.inbound_url, row.status_url, row.label, str(row.campaign_id)) == after
    assert row.updated_at == outcome.at > row.created_at
    (event,) = events(customer, number, outcome)
    assert (event["kind"], event["before"], event["after"]) == ("routed", before._asdict(), after._asdict())


def test_an_event_has_only_the_fields_that_changed(database, customer):
    (number,) = customer.numbers(1)
    (id_,) = buy(database.url, customer, number, routing=Routing(label="old"))
    changes = {"label": "old", "inbound_url": "https://example.com"}
    outcome = done(database, write_of(customer, Route(id_, changes)))
    (event,) = events(customer, number, outcome)
    assert (event["before"], event["after"]) == ({"inbound_url": None}, {"inbound_url": "https://example.com"})


def test_every_field_of_a_release_is_stored(database, customer):
    routing = Routing("https://example.com/1", "https://example.com/2", "old", str(customer.campaign()))
    (number,) = customer.numbers(1)
    (id_,) = buy(database.url, customer, number, routing=routing)
    outcome = done(database, write_of(customer, Release((id_,), REST_MS, is_bulk=False)))
    with database.engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM assignment"))
        (in_stock,) = connection.execute(text("SELECT * FROM phone_number"))
    assert (row.released_at, row.inbound_url, row.status_url, row.label, row.campaign_id) == (outcome.at, *[None] * 4)
    available_at = outcome.at + timedelta(milliseconds=REST_MS)
    assert (in_stock.assignment_id, in_stock.hold_id, in_stock.held_by) == (None, None, customer.id)
    assert in_stock.free_at == in_stock.rest_until == available_at == outcome.result.available_at
    (event,) = events(customer, number, outcome)
    assert (event["kind"], event["before"]) == ("released", routing._asdict())
    assert event["after"].keys() == {"available_at"}


def test_every_field_of_a_bulk_order_is_stored(database, customer):
    area_code = new_area_code()
    wanted = {"number_type": "toll_free", "sms_enabled": False, "mms_enabled": True, "price_micros": 2_500_000}
    stock(customer, area_code, 3)
    numbers = stock(customer, area_code, 2, **wanted)
    routing = Routing("https://example.com/1", "https://example.com/2", "many", str(customer.campaign()))
    criteria = Criteria(area_code, "toll_free", numbers[0][-9:-3], False, True)
    ids = tuple(sorted(str(uuid4()) for _ in numbers))
    write = keyed(write_of(customer, Choose(2, criteria, ids, routing)))._replace(request_id="01M854FAVJYDMKM278")
    outcome = done(database, write)
    with database.engine.connect() as connection:
        (order,) = connection.execute(text("SELECT * FROM orders"))
        rows = connection.execute(text("SELECT * FROM assignment ORDER BY id")).all()
        ((charged,),) = connection.execute(text("SELECT amount_micros FROM ledger_entry WHERE kind = 'order'"))
    assert (str(order.id), order.quantity, order.number_count, order.request_id) == (write.id, 2, 2, write.request_id)
    assert order.total_micros == -charged == 5_000_000
    assert order.api_key_id == customer.key_id
    for row, id_ in zip(rows, ids, strict=True):
        assert (str(row.id), row.order_id, row.price_micros) == (id_, order.id, 2_500_000)
        assert Routing(row.inbound_url, row.status_url, row.label, str(row.campaign_id)) == routing
        assert row.created_at == row.updated_at == order.created_at == outcome.at
    assert {row.number for row in rows} == set(numbers)
    response = BulkOrderNumbersResponse.FromString(outcome.response).data
    assert [(row.id, row.number) for row in response.assigned_numbers] == [(str(row.id), row.number) for row in rows]


# ---------------------------------------------------------------- holds, rests and time


def test_a_hold_shortens_no_rest_and_a_rest_shortens_no_hold(database, customer):
    (number,) = customer.numbers(1)
    (id_,) = buy(database.url, customer, number)
    released = done(database, write_of(customer, Release((id_,), REST_MS, is_bulk=False)))
    made = done(database, write_of(customer, Hold((number,), 30, HELD_MAX)))
    free_at = "SELECT free_at FROM phone_number"
    assert values_of(customer, free_at) == [released.result.available_at]
    done(database, write_of(customer, EndHold(made.write.id)))
    assert values_of(customer, free_at) == [released.result.available_at]
    made = done(database, write_of(customer, Hold((number,), 30, HELD_MAX)))
    let_time_pass(customer, hours=23, minutes=50)
    made = done(database, write_of(customer, Hold((number,), 30, HELD_MAX)))
    assert values_of(customer, free_at) == [made.result.expires_at]


def test_numbers_that_a_hold_no_longer_keeps_do_not_count(database, customer):
    """They are ordered, held anew, or their hold has expired or has ended."""

    def hold(*numbers):
        write = write_of(customer, Hold(numbers, 10, held_max=4))
        return write.id, code(database, write)

    a, b, c, d, e, f = customer.numbers(6)
    assert hold(a, b, c, d)[1] == "DONE"
    assert hold(e)[1] is Code.LIMIT_EXCEEDED
    buy(database.url, customer, a)
    last, held = hold(b, e)
    assert held == "DONE"
    assert hold(f)[1] is Code.LIMIT_EXCEEDED
    done(database, write_of(customer, EndHold(last)))
    assert hold(e, f)[1] == "DONE"
    assert hold(b)[1] is Code.LIMIT_EXCEEDED
    let_time_pass(customer, minutes=10)
    assert hold(b, c, d, e)[1] == "DONE"


def test_a_number_that_an_older_server_has_sold_has_left_its_hold(database, customer):
    """That server knew no holds. It left the reference to the hold in the row."""
    kept, sold = customer.numbers(2)
    hold = done(database, write_of(customer, Hold((kept, sold), 10, 2)))
    buy(database.url, customer, sold)
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE phone_number SET hold_id = :id WHERE number = :n"), {"id": hold.write.id, "n": sold}
        )
    more = write_of(customer, Hold(tuple(customer.numbers(1)), 10, 2))
    done(database, more)
    ended = done(database, write_of(customer, EndHold(hold.write.id)))
    assert ended.result.numbers == [kept]
    assert customer.owned() == {sold}


def test_a_time_is_that_of_the_decision_and_not_of_the_start_of_the_transaction(
    database, customer, until_a_transaction_waits
):
    write = KINDS["hold"](database.url, customer)
    outcomes = []
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM organization FOR UPDATE"))
        writer = threading.Thread(target=lambda: outcomes.extend(carry_out(database.url, write, limits=PATIENT)))
        writer.start()
        until_a_transaction_waits()
        before = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    writer.join()
    assert outcomes[0].at > before


# ---------------------------------------------------------------- locks


def hold_of(database, customer, numbers):
    return write_of(customer, Hold(tuple(numbers), 10, HELD_MAX))


def end_of_hold_of(database, customer, numbers):
    made = hold_of(database, customer, numbers)
    done(database, made)
    return write_of(customer, EndHold(made.id))


def release_of(database, customer, numbers):
    ids = buy(database.url, customer, *numbers)
    return write_of(customer, Release(tuple(ids), REST_MS, is_bulk=True))


each_that_locks_numbers = pytest.mark.parametrize("make", [hold_of, end_of_hold_of, release_of])


@each_that_locks_numbers
def test_numbers_are_locked_in_sorted_order(database, customer, numbers_free_meanwhile, make):
    numbers, wanted = in_disorder(customer, 40)
    write = make(database, customer, wanted)
    free = numbers_free_meanwhile(numbers[20], lambda: carry_out(database.url, write, limits=PATIENT))
    assert free == set(numbers[21:])


@each_that_locks_numbers
def test_numbers_are_locked_before_the_organization(database, customer, until_a_transaction_waits, make):
    numbers = customer.numbers(3)
    write = make(database, customer, numbers)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM organization FOR UPDATE"))
        writer = threading.Thread(target=lambda: carry_out(database.url, write, limits=PATIENT))
        writer.start()
        until_a_transaction_waits()
        with database.engine.connect() as other:
            assert not other.execute(text("SELECT number FROM phone_number FOR UPDATE SKIP LOCKED")).all()
    writer.join()


def test_a_change_of_routing_locks_no_number(database, customer):
    write = KINDS["route"](database.url, customer)
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number FOR UPDATE"))
        done(database, write)


def test_a_bulk_order_skips_numbers_that_another_transaction_has_locked(database, customer):
    area_code = new_area_code()
    numbers = stock(customer, area_code, 5)
    write = write_of(customer, Choose(2, Criteria(area_code), (str(uuid4()), str(uuid4())), Routing()))
    with database.engine.begin() as connection:
        connection.execute(
            text("SELECT FROM phone_number WHERE number = ANY(:numbers) FOR UPDATE"), {"numbers": numbers[:3]}
        )
        done(database, write)
    assert customer.owned() == set(numbers[3:])


def test_a_bulk_order_is_tried_again_while_others_have_locked_what_it_needs(database, customer):
    """They may be refused yet. So there may be enough numbers, and a refusal would be wrong."""
    area_code = new_area_code()
    numbers = stock(customer, area_code, 2)
    write = write_of(customer, Choose(2, Criteria(area_code), (str(uuid4()), str(uuid4())), Routing()))
    with database.engine.begin() as connection:
        connection.execute(text("SELECT FROM phone_number WHERE number = :n FOR UPDATE"), {"n": numbers[0]})
        assert carry_out(database.url, write) == [Retry()]
    done(database, write)
    assert customer.owned() == set(numbers)
