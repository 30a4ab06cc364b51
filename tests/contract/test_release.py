"""ReleaseNumber and BulkReleaseNumbers: numbers that are given back, and who can order them afterwards."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from tests.support.callers import TIMEOUT_SECONDS, Rest
from tests.support.customer import Customer
from tests.support.inventory import (
    all_rows,
    assert_invalid,
    assert_not_found,
    assert_shortage,
    assert_success,
    inventory_row,
    let_time_pass,
    values_of,
)
from tests.support.stack import Up, local_settings, wait_until

FIELDS = {"inbound_url": "https://example.com/in", "status_url": "https://example.com/s", "label": "é"}
ASSIGNMENT = "SELECT to_jsonb(a) FROM assignment a WHERE id = CAST(:id AS uuid)"
EVENTS = """
    SELECT jsonb_build_array(kind, organization_id, api_key_id, before, after -> 'available_at' IS NULL)
    FROM number_event WHERE number = :number ORDER BY id
"""


@pytest.fixture
def order(call, customer):
    """Order numbers with the customer's key, and return the rows."""

    def order(numbers, **fields):
        response = call(customer.key, numbers=numbers, **fields)
        assert response.status == 200, response
        return response.body["data"]

    return order


@pytest.fixture
def release(call, customer):
    return lambda *rows: [call.rpc("ReleaseNumber", customer.key, id=row["id"]) for row in rows][-1]


@pytest.fixture
def bulk_release(call, customer):
    return lambda *ids: call.rpc("BulkReleaseNumbers", customer.key, ids=ids)


def buckets(released=(), already_released=(), unknown=()):
    return {"released": [*released], "already_released": [*already_released], "unknown": [*unknown]}


def at(text):
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def assert_released(customer, row, available_at):
    """The database has no settings of the assignment, and the number rests for its former owner."""
    (assignment,) = values_of(customer, ASSIGNMENT, id=row["id"])
    assert {assignment[name] for name in (*FIELDS, "campaign_id")} == {None}
    assert (assignment["released_at"] is None, assignment["number"]) == (False, row["number"])
    number = inventory_row(customer, row["number"])
    assert (number["assignment_id"], number["hold_id"], number["held_by"]) == (None, None, str(customer.id))
    assert number["free_at"] == number["rest_until"]
    assert number["free_at"][:19] == available_at[:19]


# ---------------------------------------------------------------- ReleaseNumber


def test_a_released_number_rests_for_thirty_days(order, release, customer):
    (row,) = order(customer.numbers(1), **FIELDS, campaign_id=str(customer.campaign()))
    balance = customer.balance_micros()
    response = release(row)
    available_at = response.body["data"]["available_at"]
    assert_success(response, {"status": "released", "available_at": available_at})
    assert abs(at(available_at) - datetime.now(UTC) - timedelta(days=30)) < timedelta(seconds=30)
    assert_released(customer, row, available_at)
    assert (customer.owned(), customer.balance_micros()) == (set(), balance)


def test_a_release_is_in_the_history_with_the_settings(order, release, customer):
    campaign_id = str(customer.campaign())
    (row,) = order(customer.numbers(1), label="a", campaign_id=campaign_id)
    release(row)
    ((kind, organization_id, key_id, before, has_no_time),) = values_of(customer, EVENTS, number=row["number"])
    assert (kind, organization_id, key_id) == ("released", str(customer.id), str(customer.key_id))
    assert {n: v for n, v in before.items() if v} == {"label": "a", "campaign_id": campaign_id}
    assert not has_no_time


def test_a_released_number_is_404_afterwards(order, release, call, customer):
    (row,) = order(customer.numbers(1))
    assert release(row).status == 200
    before = all_rows(customer)
    requests = {
        "GetNumber": {},
        "UpdateNumber": {"label": "x"},
        "AttachCampaign": {"campaign_id": str(customer.campaign())},
        "DetachCampaign": {},
        "ReleaseNumber": {},
    }
    for rpc, request in requests.items():
        assert_not_found(call.rpc(rpc, customer.key, id=row["id"], **request))
    assert call.rpc("ListNumbers", customer.key).body["data"] == []
    assert all_rows(customer) == before


def test_a_number_of_another_organization_is_not_released(order, call, customer, other_customer):
    (row,) = order(customer.numbers(1), **FIELDS)
    before = all_rows(customer)
    for id_ in (row["id"], str(uuid4())):
        assert_not_found(call.rpc("ReleaseNumber", other_customer.key, id=id_))
    assert_invalid(call.rpc("ReleaseNumber", other_customer.key, id="x"), 400, id="must be a UUID")
    assert all_rows(customer) == before


def test_the_release_of_one_number_keeps_the_others_of_its_order(order, release, customer):
    first, second = order(customer.numbers(2), **FIELDS)
    release({"id": first["id"].upper()})
    assert customer.owned() == {second["number"]}
    assert customer.label_of(second["number"]) == FIELDS["label"]


# ---------------------------------------------------------------- who can order it afterwards


def test_only_the_last_owner_orders_a_resting_number_again_and_pays_again(order, release, call, customer):
    other = Customer.open(customer.engine)
    numbers = customer.numbers(2, price_micros=2_000_000)
    first = order(numbers, **FIELDS, campaign_id=str(customer.campaign()))
    release(*first)
    balance = customer.balance_micros()
    assert_shortage(call(other.key, numbers=numbers), 2, numbers)
    assert_shortage(call.rpc("HoldNumbers", other.key, numbers=numbers), 2, numbers)
    again = order(numbers)
    assert customer.balance_micros() == balance - 4_000_000
    assert {row["id"] for row in again}.isdisjoint(row["id"] for row in first)
    assert all(row.keys().isdisjoint({*FIELDS, "campaign_id"}) for row in again)
    assert_not_found(call.rpc("GetNumber", customer.key, id=first[0]["id"]))
    assert_success(call.rpc("GetNumber", customer.key, id=again[0]["id"]), again[0])
    assert inventory_row(customer, numbers[0])["held_by"] is None


def test_a_resting_number_costs_its_new_price(order, release, call, customer):
    poor = Customer.open(customer.engine, credit_micros=1_500_000)
    numbers = customer.numbers(1)
    (row,) = call(poor.key, numbers=numbers).body["data"]
    assert call.rpc("ReleaseNumber", poor.key, id=row["id"]).status == 200
    assert call(poor.key, numbers=numbers).status == 402
    poor.credit(500_000)
    assert call(poor.key, numbers=numbers).status == 200
    assert poor.balance_micros() == 0


def test_everyone_can_order_a_number_whose_rest_has_ended(order, release, call, customer, other_customer):
    (row,) = order(customer.numbers(1), **FIELDS)
    numbers = [row["number"]]
    release(row)
    let_time_pass(customer, days=29, hours=23)
    assert_shortage(call(other_customer.key, numbers=numbers), 1, numbers)
    let_time_pass(customer, hours=1)
    (new,) = call(other_customer.key, numbers=numbers).body["data"]
    assert new["id"] != row["id"]
    assert new.keys().isdisjoint({*FIELDS, "campaign_id"})
    # The former owner has no power over it any more.
    assert_not_found(call.rpc("GetNumber", customer.key, id=new["id"]))
    assert_not_found(call.rpc("ReleaseNumber", customer.key, id=row["id"]))
    assert_shortage(call(customer.key, numbers=numbers), 1, numbers)
    assert other_customer.owned() == {*numbers}


def test_the_rest_begins_anew_with_each_release(order, release, call, customer, other_customer):
    numbers = customer.numbers(1)
    release(*order(numbers))
    let_time_pass(customer, days=20)
    release(*order(numbers))
    let_time_pass(customer, days=29)
    assert_shortage(call(other_customer.key, numbers=numbers), 1, numbers)
    let_time_pass(customer, days=1)
    assert call(other_customer.key, numbers=numbers).status == 200


@pytest.fixture
def service_with_rest(database, open_path):
    """Start a service where released numbers rest for so many milliseconds."""
    settings = local_settings(open_path / ".data", database_url=database.url, workers=1, rest_ms=500)
    with (
        Up(settings, open_path, "--no-demo") as up,
        httpx.Client(base_url=up.until_ready().rest_url, timeout=TIMEOUT_SECONDS) as client,
    ):
        yield Rest(client)


def test_a_number_is_available_by_itself_when_its_rest_ends(service_with_rest, database):
    """No clock is moved here: the setting makes the rest short."""
    call, (owner, other) = service_with_rest, [Customer.open(database.engine) for _ in range(2)]
    numbers = owner.numbers(1)
    (row,) = call(owner.key, numbers=numbers).body["data"]
    available_at = call.rpc("ReleaseNumber", owner.key, id=row["id"]).body["data"]["available_at"]
    assert abs(at(available_at) - datetime.now(UTC)) < timedelta(seconds=30)
    wait_until(lambda: call.rpc("SearchNumbers", other.key).body["data"])
    assert call(other.key, numbers=numbers).status == 200
    result = call.rpc("BulkReleaseNumbers", owner.key, ids=[row["id"]])
    assert_success(result, buckets(unknown=[row["id"]]))


# ---------------------------------------------------------------- BulkReleaseNumbers


def test_each_id_is_in_one_bucket(order, release, bulk_release, call, customer, other_customer):
    live, other_live, released = order(customer.numbers(3), **FIELDS)
    release(released)
    (others,) = call(other_customer.key, numbers=other_customer.numbers(1), **FIELDS).body["data"]
    (others_released,) = call(other_customer.key, numbers=other_customer.numbers(1)).body["data"]
    assert call.rpc("ReleaseNumber", other_customer.key, id=others_released["id"]).status == 200
    hold = call.rpc("HoldNumbers", customer.key, numbers=customer.numbers(1)).body["data"]
    unknown = [str(uuid4()), others["id"], others_released["id"], hold["id"]]
    before = all_rows(other_customer)
    response = bulk_release(unknown[0], live["id"], *unknown[1:], released["id"], other_live["id"])
    assert_success(response, buckets([live["id"], other_live["id"]], [released["id"]], unknown))
    assert all_rows(other_customer) == before
    assert customer.owned() == set()
    (event,) = {event[0] for event in values_of(customer, EVENTS, number=live["number"])}
    assert event == "released"


def test_bulk_released_numbers_rest_for_thirty_days(order, bulk_release, customer):
    rows = order(customer.numbers(2), **FIELDS, campaign_id=str(customer.campaign()))
    balance = customer.balance_micros()
    assert bulk_release(*(row["id"] for row in rows)).status == 200
    for row in rows:
        available_at = inventory_row(customer, row["number"])["free_at"]
        assert_released(customer, row, available_at)
        rest = datetime.fromisoformat(available_at) - datetime.now(UTC)
        assert abs(rest - timedelta(days=30)) < timedelta(seconds=30)
    assert customer.balance_micros() == balance


def test_ids_that_are_released_again_are_in_another_bucket(order, bulk_release, customer):
    ids = [row["id"] for row in order(customer.numbers(2))]
    assert_success(bulk_release(*ids), buckets(ids))
    before = all_rows(customer)
    assert_success(bulk_release(*reversed(ids)), buckets(already_released=reversed(ids)))
    assert all_rows(customer) == before


def test_repeated_ids_and_capitals_count_once(order, bulk_release, customer):
    (row,) = order(customer.numbers(1))
    unknown = str(uuid4())
    response = bulk_release(unknown.upper(), row["id"].upper(), unknown, row["id"], row["id"])
    assert_success(response, buckets([row["id"]], unknown=[unknown]))
    assert_success(bulk_release(row["id"], row["id"].upper()), buckets(already_released=[row["id"]]))


def test_a_hundred_numbers_are_released_at_once(order, bulk_release, customer):
    ids = [row["id"] for row in order(customer.numbers(100))]
    assert_success(bulk_release(*ids), buckets(ids))
    assert customer.owned() == set()


def test_a_number_whose_rest_has_ended_is_unknown(order, bulk_release, call, customer, other_customer):
    ended, sold_since = order(customer.numbers(2))
    assert bulk_release(ended["id"], sold_since["id"]).status == 200
    let_time_pass(customer, days=30)
    assert call(other_customer.key, numbers=[sold_since["number"]]).status == 200
    ids = [ended["id"], sold_since["id"]]
    assert_success(bulk_release(*ids), buckets(unknown=ids))
    assert other_customer.owned() == {sold_since["number"]}


def test_a_number_that_was_taken_back_is_released_by_its_new_id_only(order, bulk_release, customer):
    numbers = customer.numbers(1)
    (old,) = order(numbers)
    assert bulk_release(old["id"]).status == 200
    (new,) = order(numbers)
    assert_success(bulk_release(old["id"]), buckets(unknown=[old["id"]]))
    assert customer.owned() == {*numbers}
    assert_success(bulk_release(new["id"]), buckets([new["id"]]))


def test_a_number_that_the_last_owner_holds_still_rests(order, bulk_release, call, customer):
    (row,) = order(customer.numbers(1))
    assert bulk_release(row["id"]).status == 200
    assert call.rpc("HoldNumbers", customer.key, numbers=[row["number"]]).status == 200
    assert_success(bulk_release(row["id"]), buckets(already_released=[row["id"]]))


def test_ids_that_break_their_rules_are_422(order, bulk_release, call, customer):
    (row,) = order(customer.numbers(1))
    before = all_rows(customer)
    assert_invalid(bulk_release(row["id"], "x", ""), **dict.fromkeys(("ids[1]", "ids[2]"), "must be a UUID"))
    for ids in ([], [str(uuid4())] * 101):
        assert_invalid(bulk_release(*ids), ids="must be 1..100 ids")
    assert_invalid(call.rpc("BulkReleaseNumbers", customer.key), ids="must be 1..100 ids")
    assert all_rows(customer) == before
