"""What operators do with numbers: search, list and release them, and list holds."""

import threading
from uuid import uuid4

import pytest
from sqlalchemy import text

from server.config import PREFIX
from server.store import operator_numbers
from server.store.engine import in_transaction
from tests.support.customer import Customer
from tests.support.inventory import let_time_pass, stock
from tests.support.life import REST_MS, Life
from tests.support.stack import wait_until

UNKNOWN = uuid4()


@pytest.fixture
def life(database, customer):
    return Life(database, customer)


def found(result):
    return sorted(row["number"] for row in result["numbers"])


def rows(database, query, **values):
    with database.engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(query), values).mappings()]


# ---------------------------------------------------------------- number search


def test_a_search_shows_the_number_its_properties_and_its_price(ordernumbers, customer):
    (number,) = stock(customer, "415", price_micros=1_500_000)
    shown = {"number": number, "number_type": "local", "sms_enabled": True, "mms_enabled": False, "price": "1.50"}
    assert ordernumbers("number", "search") == {"numbers": [shown]}
    status, out, _ = ordernumbers.run("number", "search")
    assert (status, out.splitlines()[1].split()) == (0, [number, "local", "True", "False", "1.50"])


def test_each_criterion_of_a_search_counts(ordernumbers, customer):
    (wanted,) = stock(customer, "415")
    (other_area,) = stock(customer, "416")
    (toll_free,) = stock(customer, "415", number_type="toll_free")
    (no_sms,) = stock(customer, "415", sms_enabled=False)
    (with_mms,) = stock(customer, "415", mms_enabled=True)
    everything = sorted([wanted, other_area, toll_free, no_sms, with_mms])
    for number, options in (
        (other_area, ["--area-code", "415"]),
        (toll_free, ["--type", "local"]),
        (no_sms, ["--sms"]),
        (with_mms, ["--no-mms"]),
    ):
        assert found(ordernumbers("number", "search", *options)) == [each for each in everything if each != number]
    assert found(ordernumbers("number", "search", "--no-sms")) == [no_sms]
    assert found(ordernumbers("number", "search", "--mms")) == [with_mms]
    for digits in (wanted[-2:], wanted[-7:], wanted[1:]):  # with the index of digits, and without it
        matching = [each for each in everything if digits in each]
        assert found(ordernumbers("number", "search", "--pattern", digits)) == matching
    assert len(ordernumbers("number", "search", "--quantity", 2)["numbers"]) == 2


def test_a_search_finds_only_what_every_organization_can_order(ordernumbers, customer, life):
    assigned, held, resting, free, quarantined = *stock(customer, "415", 4), *customer.quarantined_numbers(1)
    life.order(assigned)
    life.hold(held)
    life.release(life.order(resting))
    assert quarantined
    assert found(ordernumbers("number", "search", "--quantity", 100)) == [free]


def test_a_search_that_finds_nothing_says_so(ordernumbers):
    assert ordernumbers("number", "search") == {"numbers": []}
    assert ordernumbers("number", "search", "--pattern", "55501") == {"numbers": []}
    assert ordernumbers.run("number", "search") == (0, "none\n", "")


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        (["--area-code", "41"], "area_code must be 3 digits"),
        (["--type", "mobile"], "number_type must be local, toll_free or short_code"),
        (["--pattern", "5x"], "pattern must be 1..15 digits"),
        (["--quantity", "0"], "quantity must be 1..100"),
        (["--quantity", "101"], "quantity must be 1..100"),
        (["--quantity", "-1"], "quantity must be 1..100"),
        (["--area-code", "x", "--pattern", ""], "area_code must be 3 digits, pattern must be 1..15 digits"),
    ],
)
def test_criteria_that_the_service_refuses_are_refused_here_too(ordernumbers, options, refusal):
    assert ordernumbers.refusal("number", "search", *options) == refusal


# ---------------------------------------------------------------- number list


def test_the_numbers_of_an_organization_are_listed_newest_first(ordernumbers, database, customer, life):
    first, second, released = customer.numbers(3)
    campaign = customer.campaign()
    assignments = [life.order(first, label="first", campaign_id=str(campaign)), life.order(second)]
    life.release(life.order(released))
    other = Customer.open(database.engine)
    Life(database, other).order(*customer.numbers(1))
    listed = ordernumbers("number", "list", customer.id)
    (newest, oldest), has_more = listed["numbers"], listed["has_more"]
    assert has_more is False
    assert [oldest["id"], newest["id"]] == [str(each) for each in assignments]
    assert (newest["number"], newest["label"], newest["campaign_id"]) == (second, None, None)
    assert (oldest["number"], oldest["label"], oldest["campaign_id"]) == (first, "first", str(campaign))
    assert oldest["created_at"] == oldest["updated_at"]
    (stored,) = rows(database, "SELECT created_at FROM assignment WHERE id = :id", id=oldest["id"])
    assert oldest["created_at"] == f"{stored['created_at']:%Y-%m-%dT%H:%M:%SZ}"


def test_a_list_says_when_there_is_more(ordernumbers, customer, life):
    for number in customer.numbers(3):
        life.order(number)
    listed = ordernumbers("number", "list", customer.id, "--limit", 2)
    assert (len(listed["numbers"]), listed["has_more"]) == (2, True)
    status, out, _ = ordernumbers.run("number", "list", customer.id, "--limit", 2)
    assert status == 0
    assert out.endswith("There are more: --limit shows them.\n")
    assert "There are more" not in ordernumbers.run("number", "list", customer.id, "--limit", 3)[1]


# ---------------------------------------------------------------- number release


def test_a_release_by_an_operator_has_the_effect_of_one_by_the_organization(
    ordernumbers, database, customer, life, monkeypatch
):
    monkeypatch.setenv(f"{PREFIX}REST_MS", str(REST_MS))
    ours, theirs = customer.numbers(2)
    routing = {"label": "ours", "inbound_url": "https://example.com/in"}
    by_operator, by_organization = life.order(ours, **routing), life.order(theirs, **routing)
    released = ordernumbers("number", "release", ours)
    life.release(by_organization)
    assert (released["number"], released["id"]) == (ours, str(by_operator))
    assert released["organization_id"] == str(customer.id)
    written = """
        SELECT p.assignment_id, p.held_by, p.hold_id,
          p.free_at - released_at AS free, p.rest_until - released_at AS rest,
          a.inbound_url, a.status_url, a.label, a.campaign_id, a.updated_at = a.created_at AS is_unchanged,
          e.kind, e.organization_id, e.before, e.created_at = released_at AS has_time,
          (e.after ->> 'available_at')::timestamptz - released_at AS in_event
        FROM phone_number p JOIN assignment a USING (number) JOIN number_event e USING (number)
        WHERE number = :number
    """
    assert rows(database, written, number=ours) == rows(database, written, number=theirs)
    (rest,) = rows(database, "SELECT free_at FROM phone_number WHERE number = :number", number=ours)
    assert released["available_at"] == f"{rest['free_at']:%Y-%m-%dT%H:%M:%SZ}"
    who = "SELECT api_key_id, request_id FROM number_event WHERE number = :number"
    assert rows(database, who, number=ours) == [{"api_key_id": None, "request_id": None}]
    assert customer.owned() == set()


def test_only_its_organization_can_order_a_number_that_an_operator_released(ordernumbers, database, customer, life):
    (number,) = customer.numbers(1)
    life.order(number)
    ordernumbers("number", "release", number)
    assert found(ordernumbers("number", "search")) == []
    assert life.order(number)
    assert customer.owned() == {number}


def test_the_number_rests_as_long_as_the_setting_says(ordernumbers, database, customer, life, monkeypatch):
    monkeypatch.setenv(f"{PREFIX}REST_MS", "0")
    (number,) = customer.numbers(1)
    life.order(number)
    ordernumbers("number", "release", number)
    assert found(ordernumbers("number", "search")) == [number]


def test_a_release_tells_what_happened(ordernumbers, customer, life):
    (number,) = customer.numbers(1)
    life.order(number)
    status, out, _ = ordernumbers.run("number", "release", number)
    first, second = out.splitlines()
    assert status == 0
    assert first == f"Organization {customer.id} does not have number {number} any more."
    assert second.endswith("only that organization can order it, and then every organization can.")


def test_only_an_assigned_number_can_be_released(ordernumbers, customer, life):
    assert ordernumbers.refusal("number", "release", "+19") == "no number +19"
    (number,) = customer.numbers(1)
    assert ordernumbers.refusal("number", "release", number) == f"number {number} is not assigned"
    life.hold(number)
    assert ordernumbers.refusal("number", "release", number) == f"number {number} is not assigned"
    life.order(number)
    ordernumbers("number", "release", number)
    assert ordernumbers.refusal("number", "release", number) == f"number {number} is not assigned"


def release_behind(database, number, change, values, meanwhile=lambda other: None):
    """Release the number while another transaction holds the locks of `change`. Then that one commits."""

    def release():
        released.append(in_transaction(database.engine, lambda c: operator_numbers.release(c, number, REST_MS)))

    released, waiting = [], text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    thread = threading.Thread(target=release)
    with database.engine.connect() as other:
        other.execute(text(change), values)
        thread.start()
        wait_until(lambda: other.execute(waiting).scalar_one())
        meanwhile(other)
        other.commit()
    thread.join()
    assert released


def test_a_release_waits_for_a_change_of_the_routing_and_keeps_it_in_the_history(database, customer, life):
    (number,) = customer.numbers(1)
    life.order(number)
    change = """
        WITH locked AS (UPDATE organization SET revision = revision + 1 WHERE id = :id)
        UPDATE assignment SET label = 'new'
    """
    release_behind(database, number, change, {"id": customer.id})
    (event,) = rows(database, "SELECT before ->> 'label' AS label FROM number_event")
    assert event["label"] == "new"


@pytest.mark.parametrize(
    ("waits_for", "other_table", "free_rows"),
    [("organization", "phone_number", 0), ("phone_number", "organization", 1)],
)
def test_a_release_locks_the_number_before_its_organization(
    database, customer, life, waits_for, other_table, free_rows
):
    def assert_free_rows(other):
        free = text(f"SELECT count(*) FROM (SELECT FROM {other_table} FOR UPDATE SKIP LOCKED) free")
        assert other.execute(free).scalar_one() == free_rows

    (number,) = customer.numbers(1)
    life.order(number)
    release_behind(database, number, f"SELECT FROM {waits_for} FOR UPDATE", {}, assert_free_rows)
    assert customer.owned() == set()


# ---------------------------------------------------------------- hold list


def test_the_holds_of_an_organization_that_have_not_ended_are_listed(ordernumbers, database, customer, life):
    numbers = customer.numbers(6)
    expired = life.hold(numbers[5])
    let_time_pass(customer, minutes=11)
    first, second, released = life.hold(*numbers[2::-1]), life.hold(numbers[3], minutes=30), life.hold(numbers[4])
    life.end_hold(released)
    life.order(numbers[1])
    Life(database, Customer.open(database.engine)).hold(*customer.numbers(1))
    (older, newer) = ordernumbers("hold", "list", customer.id)["holds"]
    assert (older["id"], older["numbers"]) == (str(first), [numbers[2], numbers[0]])
    assert (newer["id"], newer["numbers"]) == (str(second), [numbers[3]])
    (stored,) = rows(database, "SELECT created_at, expires_at FROM hold WHERE id = :id", id=second)
    assert newer["created_at"] == f"{stored['created_at']:%Y-%m-%dT%H:%M:%SZ}"
    assert newer["expires_at"] == f"{stored['expires_at']:%Y-%m-%dT%H:%M:%SZ}"
    status, out, _ = ordernumbers.run("hold", "list", customer.id)
    assert status == 0
    assert str(first) in out
    assert str(expired) not in out


def test_an_organization_without_holds_has_none(ordernumbers, customer):
    assert ordernumbers("hold", "list", customer.id) == {"holds": []}
    assert ordernumbers.run("hold", "list", customer.id) == (0, "none\n", "")


def test_an_unknown_organization_is_named(ordernumbers):
    for group in ("number", "hold"):
        assert ordernumbers.refusal(group, "list", UNKNOWN) == f"no organization {UNKNOWN}"
