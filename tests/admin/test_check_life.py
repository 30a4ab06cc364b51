"""The check finds damage to holds, to the rest after a release, and to the history. It finds nothing else."""

from itertools import cycle, islice
from uuid import uuid4

import pytest
from sqlalchemy import event, text

from server.store import check
from server.store.check import violations
from tests.support.customer import Customer
from tests.support.inventory import let_time_pass
from tests.support.life import Life


@pytest.fixture
def customer(damaged):
    return Customer.open(damaged.engine)


@pytest.fixture
def life(damaged, customer):
    return Life(damaged, customer)


@pytest.fixture
def other(damaged):
    """What another organization does."""
    return Life(damaged, Customer.open(damaged.engine))


@pytest.fixture
def damage(damaged):
    """Run a statement that breaks something, and return the findings of the check. Before it there must be none."""

    def run(statement, **values):
        assert violations(damaged.engine) == []
        with damaged.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # turns off foreign keys
            assert connection.execute(text(statement), values).rowcount == 1
        return violations(damaged.engine)

    return run


@pytest.fixture
def value(damaged):
    """Read one value."""

    def read(query, **values):
        with damaged.engine.connect() as connection:
            return connection.execute(text(query), values).scalar_one()

    return read


@pytest.fixture
def held(life, customer):
    """A number and the hold that keeps it. The hold has another number too."""
    numbers = customer.numbers(2)
    return numbers[0], life.hold(*numbers)


@pytest.fixture
def resting(life, customer):
    """A number that was released, and its assignment."""
    (number,) = customer.numbers(1)
    assignment_id = life.order(number, label="ours")
    life.release(assignment_id)
    return number, assignment_id


# ---------------------------------------------------------------- correct states


def test_a_whole_life_of_a_number_has_no_violations(damaged, life, customer, other):
    first, second, third = customer.numbers(3)
    hold = life.hold(first, second)
    life.hold(second, third)
    assignment = life.order(first, label="a", inbound_url="https://example.com/a")
    life.route(assignment, label="b", inbound_url=None)
    life.release(assignment)
    life.end_hold(hold)
    life.end_hold(life.hold(first))  # during its rest
    again = life.order(first)
    life.release(again, rest_ms=0)
    life.end_hold(life.hold(first))  # after its rest
    other.order(first)
    assert violations(damaged.engine) == []


def test_an_expired_hold_and_a_rest_that_is_over_are_no_violations(damaged, life, other):
    rested, new = life.customer.numbers(2)
    life.release(life.order(rested))
    life.hold(rested, new)
    let_time_pass(life.customer, hours=2)
    assert violations(damaged.engine) == []
    other.hold(rested, new)
    assert violations(damaged.engine) == []


def test_what_an_old_server_left_beside_an_assignment_is_no_violation(damaged, life, resting):
    number, _ = resting
    hold = life.hold(number)
    life.order(number)
    with damaged.engine.begin() as connection:
        connection.execute(text("UPDATE phone_number SET hold_id = :hold, rest_until = now()"), {"hold": hold})
        connection.execute(text("UPDATE hold SET released_at = now()"))
    assert violations(damaged.engine) == []
    with damaged.engine.begin() as connection:
        connection.execute(text("UPDATE phone_number SET rest_until = NULL"))
    assert violations(damaged.engine) == []


def test_a_number_that_nobody_can_order_for_some_time_is_no_violation(damaged, customer):
    customer.quarantined_numbers(1)
    assert violations(damaged.engine) == []


# ---------------------------------------------------------------- holds


def test_a_number_kept_by_an_unknown_hold_is_found(damage, held, customer):
    number, unknown = held[0], uuid4()
    found = damage("UPDATE phone_number SET hold_id = :id WHERE number = :number", id=unknown, number=number)
    assert found == [f"number {number} is kept by hold {unknown}, which organization {customer.id} does not have"]


def test_a_number_kept_by_a_hold_of_another_organization_is_found(damage, held, other):
    number, hold = held
    found = damage(
        "UPDATE phone_number SET held_by = :other WHERE number = :number", other=other.customer.id, number=number
    )
    assert found == [f"number {number} is kept by hold {hold}, which organization {other.customer.id} does not have"]


def test_a_released_hold_that_keeps_a_number_is_found(damage, life, held, value):
    number, hold = held
    life.hold(value("SELECT number FROM phone_number WHERE number <> :number", number=number))
    found = damage("UPDATE hold SET released_at = now() WHERE id = :hold", hold=hold)
    assert found == [f"number {number} is kept by hold {hold}, which was released"]


def test_a_number_kept_by_a_hold_that_does_not_name_it_is_found(damage, held, customer):
    _, hold = held
    (number,) = customer.numbers(1)
    keep = """
        UPDATE phone_number SET (held_by, hold_id, free_at) = (SELECT organization_id, id, expires_at FROM hold)
        WHERE number = :number
    """
    assert damage(keep, number=number) == [f"number {number} is kept by hold {hold}, which does not name it"]


@pytest.mark.parametrize("change", ["-", "+"])
def test_a_number_that_is_free_at_another_time_than_its_hold_ends_is_found(damage, held, value, change):
    number, hold = held
    expires_at = value("SELECT expires_at::text FROM hold")
    found = damage(
        f"UPDATE phone_number SET free_at = free_at {change} interval '1 us' WHERE number = :number", number=number
    )
    free_at = value("SELECT free_at::text FROM phone_number WHERE number = :number", number=number)
    assert free_at != expires_at
    assert found == [
        f"number {number} is kept by hold {hold} until {free_at}, but the hold and the rest end at {expires_at}"
    ]


def test_a_hold_that_shortens_a_rest_is_found(damage, life, resting, value):
    number, _ = resting
    hold = life.hold(number)
    expires_at, rest_until = (
        value("SELECT expires_at::text FROM hold"),
        value("SELECT rest_until::text FROM phone_number"),
    )
    assert expires_at < rest_until
    assert damage("UPDATE phone_number SET free_at = :expires_at", expires_at=expires_at) == [
        f"number {number} is kept by hold {hold} until {expires_at}, but the hold and the rest end at {rest_until}"
    ]


def test_a_number_kept_by_neither_a_hold_nor_a_rest_is_found(damage, customer, value):
    (number,) = customer.numbers(1)
    found = damage("UPDATE phone_number SET held_by = :by, free_at = now() + interval '1 h'", by=customer.id)
    free_at = value("SELECT free_at::text FROM phone_number")
    assert found == [
        f"number {number} is kept for organization {customer.id} until {free_at}, but by no hold and no rest"
    ]


# ---------------------------------------------------------------- the rest after a release


@pytest.mark.parametrize("change", ["- interval '1 us'", "+ interval '1 us'"])
def test_a_number_that_is_free_at_another_time_than_its_rest_ends_is_found(damage, resting, customer, value, change):
    number, _ = resting
    found = damage(f"UPDATE phone_number SET free_at = free_at {change}")
    free_at = value("SELECT free_at::text FROM phone_number")
    assert found == [
        f"number {number} is kept for organization {customer.id} until {free_at}, but by no hold and no rest"
    ]


def test_a_resting_number_that_all_organizations_can_order_is_found(damage, resting, customer, value):
    number, _ = resting
    rest_until = value("SELECT rest_until::text FROM phone_number")
    assert damage("UPDATE phone_number SET held_by = NULL, free_at = NULL") == [
        f"number {number} rests until {rest_until} for organization {customer.id}, but is kept for none"
    ]


def test_a_resting_number_that_another_organization_can_order_is_found(damage, resting, customer, other, value):
    number, _ = resting
    rest_until, another = value("SELECT rest_until::text FROM phone_number"), other.customer.id
    assert damage("UPDATE phone_number SET held_by = :another", another=another) == [
        f"number {number} rests until {rest_until} for organization {customer.id}, but is kept for {another}"
    ]


def test_the_last_release_says_for_whom_a_number_rests(damage, life, other, value):
    (number,) = life.customer.numbers(1)
    life.release(life.order(number), rest_ms=0)
    other.release(other.order(number))
    rest_until, first = value("SELECT rest_until::text FROM phone_number"), life.customer.id
    assert damage("UPDATE phone_number SET held_by = :first", first=first) == [
        f"number {number} rests until {rest_until} for organization {other.customer.id}, but is kept for {first}"
    ]


def test_a_rest_that_differs_from_its_release_is_found(damage, resting, value):
    number, _ = resting
    available_at = value("SELECT rest_until::text FROM phone_number")
    found = damage("UPDATE phone_number SET (rest_until, free_at) = (now(), now())")
    rest_until = value("SELECT rest_until::text FROM phone_number")
    assert found == [f"number {number} rests until {rest_until}, but its last release says {available_at}"]


def test_a_release_without_a_rest_is_found(damage, resting):
    number, _ = resting
    assert damage("UPDATE phone_number SET rest_until = NULL, free_at = NULL, held_by = NULL") == [
        f"number {number} was released, but has no rest"
    ]


def test_a_rest_without_a_release_is_found(damage, customer, value):
    (number,) = customer.numbers(1)
    found = damage("UPDATE phone_number SET rest_until = now()")
    rest_until = value("SELECT rest_until::text FROM phone_number")
    assert found == [f"number {number} rests until {rest_until}, but its last release says nothing"]


@pytest.mark.parametrize(
    "setting",
    ["inbound_url = 'https://example.com'", "status_url = 'https://example.com'", "label = 'x'", "campaign_id = :id"],
)
def test_a_released_assignment_that_has_settings_is_found(damage, resting, customer, setting):
    _, assignment_id = resting
    campaign = {"id": customer.campaign()} if ":id" in setting else {}
    assert damage(f"UPDATE assignment SET {setting}", **campaign) == [
        f"assignment {assignment_id} was released, but still has settings"
    ]


# ---------------------------------------------------------------- the history


def test_a_released_assignment_without_its_event_is_found(damage, life, resting, value):
    number, assignment_id = resting
    life.order(number)
    released_at = value("SELECT released_at::text FROM assignment WHERE id = :id", id=assignment_id)
    assert damage("DELETE FROM number_event WHERE kind = 'released'") == [
        f"assignment {assignment_id} was released at {released_at}, but the history of number {number} does not say so"
    ]


@pytest.mark.parametrize(
    "change", ["organization_id = :other", "created_at = created_at + interval '1 us'"], ids=["organization", "time"]
)
def test_a_release_event_that_differs_from_its_assignment_is_found(damage, life, resting, other, change):
    number, assignment_id = resting
    life.order(number)
    values = {"other": other.customer.id} if ":other" in change else {}
    (found,) = damage(f"UPDATE number_event SET {change} WHERE kind = 'released'", **values)
    assert found.startswith(f"assignment {assignment_id} was released at ")


def test_a_bulk_order_of_another_count_is_found(damage, life, customer, value):
    life.order(*customer.numbers(1))
    assert damage("UPDATE orders SET quantity = 1") == []
    order_id = value("SELECT id FROM orders")
    assert damage("UPDATE orders SET quantity = 2") == [f"bulk order {order_id} was for 2 numbers, but has 1"]


def test_a_bulk_order_without_a_count_is_found(damage, life, customer, value):
    life.order(*customer.numbers(1))
    order_id = value("SELECT id FROM orders")
    assert damage("UPDATE orders SET quantity = 1, number_count = NULL") == [
        f"bulk order {order_id} was for 1 numbers, but has no count"
    ]


def test_a_hold_without_an_event_is_found(damage, held):
    number, hold = held
    assert damage("DELETE FROM number_event WHERE number = :number", number=number) == [
        f"hold {hold} has number {number}, but the history of the number does not say so"
    ]


@pytest.mark.parametrize("change", ["kind = 'routed'", "organization_id = NULL"])
def test_a_hold_with_another_event_is_found(damage, held, change):
    number, hold = held
    assert f"hold {hold} has number {number}, but the history of the number does not say so" in damage(
        f"UPDATE number_event SET {change} WHERE number = :number", number=number
    )


def test_an_event_of_a_number_that_is_not_in_the_inventory_is_found(damage):
    event = "INSERT INTO number_event (number, id, kind, created_at) VALUES ('+19', :id, 'changed', now())"
    assert damage(event, id=uuid4()) == ["the history has number +19, which is not in the inventory"]


def test_an_event_of_a_missing_hold_is_found(damage, life, customer):
    (number,) = customer.numbers(1)
    hold = life.hold(number)
    life.order(number)
    assert damage("DELETE FROM hold") == [
        f"number {number} was held by hold {hold}, which organization {customer.id} does not have for it"
    ]


def test_an_event_of_a_number_that_its_hold_does_not_name_is_found(damage, life, customer):
    number, other = customer.numbers(2)
    hold = life.hold(number, other)
    life.order(number)
    assert damage("UPDATE hold SET numbers = array_remove(numbers, :number)", number=number) == [
        f"number {number} was held by hold {hold}, which organization {customer.id} does not have for it"
    ]


# ---------------------------------------------------------------- ranges, and writes at the same time


def test_every_range_is_checked(damaged, life, customer, monkeypatch):
    monkeypatch.setattr(check, "RANGE_ROWS", 2)
    numbers = customer.numbers(7)
    life.hold(*numbers[:4])
    holds = [life.hold(number) for number in numbers[4:]]
    assert violations(damaged.engine) == []
    with damaged.engine.begin() as connection:
        connection.execute(text("UPDATE phone_number SET free_at = 'infinity'"))
        connection.execute(text("UPDATE number_event SET kind = 'routed'"))
    found = violations(damaged.engine)
    for number in numbers:
        assert len([finding for finding in found if f"number {number} is kept" in finding]) == 1
        assert len([finding for finding in found if f"has number {number}, but the history" in finding]) == 1
    assert all(str(hold) in "".join(found) for hold in holds)
    assert len(found) == 14


def test_holds_and_releases_at_the_same_time_cause_no_findings(damaged, life, other, monkeypatch):
    monkeypatch.setattr(check, "RANGE_ROWS", 1)
    numbers = life.customer.numbers(3)

    def live():
        for number in cycle(numbers):
            assignment = life.order(number, label="ours")
            yield
            life.route(assignment, label=None)
            yield
            life.release(assignment, rest_ms=0)
            hold = life.hold(*numbers)
            yield
            life.end_hold(hold)
            other.hold(number)
            yield
            other.release(other.order(number), rest_ms=0)
            yield

    # Not without end: each step makes rows that the check then reads.
    steps, is_turn = islice(live(), 30), cycle([False, True])
    next(steps)

    @event.listens_for(damaged.engine, "before_cursor_execute")
    def live_on_before_every_second_statement(connection, cursor, statement, *_):
        if "SELECT" in statement and next(is_turn):
            next(steps, None)

    assert violations(damaged.engine) == []
    event.remove(damaged.engine, "before_cursor_execute", live_on_before_every_second_statement)
    assert next(steps, None) is None
