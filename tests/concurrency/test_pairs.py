"""Two calls for the same number at the same time. Whichever comes first, the outcome is one of the right ones."""

import asyncio
from collections import Counter

import pytest
from sqlalchemy import text

from tests.support.crowd import gather
from tests.support.inventory import values_of

SHORTAGE, NOT_FOUND = "INSUFFICIENT_INVENTORY", "NOT_FOUND"
EVENTS = "SELECT array_agg(kind ORDER BY created_at, id) FROM number_event WHERE number = :number GROUP BY number"


@pytest.fixture
def a(open_customer):
    return open_customer()


@pytest.fixture
def b(open_customer):
    return open_customer()


@pytest.fixture
def race(service, times):
    """Do `prepare(rpc, number)` and then `first` and `second` at once, for each of many numbers.

    Returns the codes of the pairs by number.
    """

    def race(customer, first, second, prepare=None):
        numbers = customer.numbers(times(40, 1000))

        async def one(rpc, number):
            prepared = await prepare(rpc, number) if prepare else None
            replies = await asyncio.gather(first(rpc, number, prepared), second(rpc, number, prepared))
            return tuple(reply.code for reply in replies)

        outcomes = dict(zip(numbers, gather(service, lambda rpc: [one(rpc, n) for n in numbers]), strict=True))
        print(Counter(outcomes.values()))
        return outcomes

    return race


# ---------------------------------------------------------------- the calls


def order(customer):
    return lambda rpc, number, _: rpc("OrderNumbers", customer.key, numbers=[number])


def hold(customer):
    return lambda rpc, number, _: rpc("HoldNumbers", customer.key, numbers=[number])


def end_hold(customer):
    return lambda rpc, _, hold_id: rpc("ReleaseHold", customer.key, id=hold_id)


def release(customer):
    return lambda rpc, _, id_: rpc("ReleaseNumber", customer.key, id=id_)


def bulk_release(customer):
    return lambda rpc, _, id_: rpc("BulkReleaseNumbers", customer.key, ids=[id_])


def update(customer):
    return lambda rpc, _, id_: rpc("UpdateNumber", customer.key, id=id_, label="new", inbound_url="https://example.com")


def ordered(customer):
    async def prepare(rpc, number):
        (row,) = (await rpc("OrderNumbers", customer.key, numbers=[number], label="old")).data
        return row["id"]

    return prepare


def held(customer):
    async def prepare(rpc, number):
        return (await rpc("HoldNumbers", customer.key, numbers=[number])).data["id"]

    return prepare


def numbers_with(outcomes, pair):
    return {number for number, codes in outcomes.items() if codes == pair}


# ---------------------------------------------------------------- holds


def test_either_the_order_or_the_hold_of_another_organization_gets_the_number(race, a, b):
    outcomes = race(a, order(a), hold(b))
    assert set(outcomes.values()) <= {("OK", SHORTAGE), (SHORTAGE, "OK")}
    assert a.owned() == numbers_with(outcomes, ("OK", SHORTAGE))


def test_an_order_takes_what_its_own_organization_holds_at_the_same_time(race, a):
    outcomes = race(a, order(a), hold(a))
    assert set(outcomes.values()) <= {("OK", "OK"), ("OK", SHORTAGE)}
    assert a.owned() == set(outcomes)


def test_only_one_of_two_organizations_gets_the_hold(race, a, b):
    outcomes = race(a, hold(a), hold(b))
    assert set(outcomes.values()) <= {("OK", SHORTAGE), (SHORTAGE, "OK")}


def test_of_two_holds_of_one_organization_only_one_keeps_the_number(race, a):
    outcomes = race(a, hold(a), hold(a))
    assert set(outcomes.values()) == {("OK", "OK")}
    kept = values_of(
        a, "SELECT count(*) FROM phone_number p JOIN hold h ON h.id = p.hold_id WHERE held_by = :id", id=a.id
    )
    assert kept == [len(outcomes)]


def test_an_order_of_another_organization_succeeds_only_after_the_end_of_the_hold(race, a, b):
    outcomes = race(a, end_hold(a), order(b), prepare=held(a))
    assert set(outcomes.values()) <= {("OK", "OK"), ("OK", SHORTAGE)}
    assert b.owned() == numbers_with(outcomes, ("OK", "OK"))


def test_an_order_and_the_end_of_the_own_hold_both_succeed(race, a):
    outcomes = race(a, end_hold(a), order(a), prepare=held(a))
    assert set(outcomes.values()) == {("OK", "OK")}
    assert a.owned() == set(outcomes)


def test_a_hold_ends_once(race, a):
    outcomes = race(a, end_hold(a), end_hold(a), prepare=held(a))
    assert set(outcomes.values()) <= {("OK", NOT_FOUND), (NOT_FOUND, "OK")}


def test_two_holds_that_together_exceed_the_limit_are_not_both_made(service, a):
    """Of 1,000 numbers that an organization may hold, 900 are held. Each hold is of 60."""
    numbers = a.numbers(1140)
    for first in range(0, 900, 100):
        hold_of(service, a, numbers[first : first + 100])
    for round_ in range(4):
        pair = [numbers[1020 - 60 * i : 1080 - 60 * i] for i in (0, 1)]
        replies = gather(service, lambda rpc, pair=pair: [rpc("HoldNumbers", a.key, numbers=each) for each in pair])
        assert sorted(reply.code for reply in replies) == ["LIMIT_EXCEEDED", "OK"], round_
        (made,) = [reply.data["id"] for reply in replies if reply.code == "OK"]
        gather(service, lambda rpc, made=made: [rpc("ReleaseHold", a.key, id=made)])


def hold_of(service, customer, numbers):
    (reply,) = gather(service, lambda rpc: [rpc("HoldNumbers", customer.key, numbers=numbers)])
    assert reply.code == "OK"


# ---------------------------------------------------------------- releases


@pytest.mark.parametrize("give_back", [release, bulk_release])
def test_the_last_owner_can_order_a_number_again_only_after_its_release(race, a, give_back):
    outcomes = race(a, give_back(a), order(a), prepare=ordered(a))
    assert set(outcomes.values()) <= {("OK", "OK"), ("OK", SHORTAGE)}
    assert a.owned() == numbers_with(outcomes, ("OK", "OK"))


def test_no_other_organization_gets_a_number_that_is_released_at_the_same_time(race, a, b):
    outcomes = race(a, release(a), order(b), prepare=ordered(a))
    assert set(outcomes.values()) == {("OK", SHORTAGE)}
    assert a.owned() == b.owned() == set()


def test_a_number_is_released_once(race, a):
    outcomes = race(a, release(a), release(a), prepare=ordered(a))
    assert set(outcomes.values()) <= {("OK", NOT_FOUND), (NOT_FOUND, "OK")}
    with a.engine.connect() as connection:
        for number in outcomes:
            assert connection.execute(text(EVENTS), {"number": number}).scalar_one() == ["released"]


def test_an_update_changes_a_number_before_its_release_or_not_at_all(race, a):
    outcomes = race(a, release(a), update(a), prepare=ordered(a))
    assert set(outcomes.values()) <= {("OK", "OK"), ("OK", NOT_FOUND)}
    with a.engine.connect() as connection:
        for number, (_, updated) in outcomes.items():
            expected = ["routed", "released"] if updated == "OK" else ["released"]
            assert connection.execute(text(EVENTS), {"number": number}).scalar_one() == expected
    routing = "SELECT coalesce(inbound_url, label) FROM assignment WHERE organization_id = :id"
    assert set(values_of(a, routing, id=a.id)) == {None}


def test_of_two_updates_of_different_fields_both_remain(race, a):
    def set_label(rpc, _, id_):
        return rpc("UpdateNumber", a.key, id=id_, label="new")

    def set_url(rpc, _, id_):
        return rpc("UpdateNumber", a.key, id=id_, inbound_url="https://example.com")

    outcomes = race(a, set_label, set_url, prepare=ordered(a))
    assert set(outcomes.values()) == {("OK", "OK")}
    routing = "SELECT label || ' ' || inbound_url FROM assignment WHERE organization_id = :id"
    assert set(values_of(a, routing, id=a.id)) == {"new https://example.com"}
