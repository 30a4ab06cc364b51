"""GetOrder, FindOrder and GetBulkOrder: the response to an order as it was given then, whatever happened since."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import text

from server.store.inventory import COLUMNS, import_csv
from tests.support.inventory import (
    assert_invalid,
    assert_not_found,
    assert_success,
    let_time_pass,
    new_area_code,
    stock,
    values_of,
)

FIELDS = {"inbound_url": "https://example.com/in", "status_url": "https://example.com/status", "label": "front desk"}
OTHER_FIELDS = {"inbound_url": "https://example.org/2", "status_url": "https://example.org/3", "label": "é"}


@pytest.fixture
def key():
    return str(uuid4())


@pytest.fixture
def order(call, customer, key):
    """Order under `key`, and return the rows of the response and the order's id."""

    def order(numbers, **fields):
        response = call(customer.key, numbers=numbers, **fields, idempotency_key=key)
        assert response.status == 200, response
        (order_id,) = values_of(customer, "SELECT id::text FROM orders WHERE organization_id = :id", id=customer.id)
        return response.body["data"], order_id

    return order


@pytest.fixture
def lookups(call, customer, key):
    """The responses of both calls that look an order up."""

    def lookups(order_id):
        return [
            call.rpc("GetOrder", customer.key, id=order_id),
            call.rpc("FindOrder", customer.key, idempotency_key=key),
        ]

    return lookups


def bulk(call, customer, area, quantity=2, key=None, **fields):
    response = call.rpc("BulkOrderNumbers", customer.key, header_key=key, quantity=quantity, area_code=area, **fields)
    assert response.status == 200, response
    return response.body["data"]


# ---------------------------------------------------------------- success


def test_an_order_is_found_by_its_id_and_by_its_idempotency_key(order, lookups, customer):
    rows, order_id = order(list(reversed(customer.numbers(3))), **FIELDS, campaign_id=str(customer.campaign()))
    for response in lookups(order_id):
        assert_success(response, rows, meta={"order_id": order_id})


def test_an_order_without_settings_has_no_members_for_them(order, lookups, customer):
    rows, order_id = order(customer.numbers(1, number_type="toll_free", sms_enabled=False, mms_enabled=True))
    assert rows[0].keys().isdisjoint(("inbound_url", "status_url", "label", "campaign_id"))
    for response in lookups(order_id):
        assert_success(response, rows, meta={"order_id": order_id})


def test_an_order_of_a_hundred_numbers_is_found_in_its_order(order, lookups, customer):
    rows, order_id = order(list(reversed(customer.numbers(100))))
    for response in lookups(order_id):
        assert_success(response, rows, meta={"order_id": order_id})


def test_a_bulk_order_is_found_by_all_three_calls(call, customer, key):
    area = new_area_code()
    stock(customer, area, 5)
    data = bulk(call, customer, area, 5, key, **FIELDS)
    order_id = data["order_id"]
    assert_success(call.rpc("GetBulkOrder", customer.key, id=order_id), data)
    for request in ({"name": "GetOrder", "id": order_id}, {"name": "FindOrder", "idempotency_key": key}):
        found = call.rpc(request.pop("name"), customer.key, **request)
        assert_success(found, data["assigned_numbers"], meta={"order_id": order_id})


def test_orders_at_the_same_time_have_their_own_numbers(call, customer):
    """Several of them are in one batch."""
    numbers = [customer.numbers(3) for _ in range(20)]
    keys = [str(uuid4()) for _ in numbers]
    with ThreadPoolExecutor(20) as threads:
        sent = [
            threads.submit(call, customer.key, numbers=n, idempotency_key=k) for n, k in zip(numbers, keys, strict=True)
        ]
        orders = [future.result().body["data"] for future in sent]
    for rows, idempotency_key in zip(orders, keys, strict=True):
        assert call.rpc("FindOrder", customer.key, idempotency_key=idempotency_key).body["data"] == rows


def test_an_order_of_a_server_that_did_not_count_its_numbers_is_found_as_a_whole(call, order, lookups, customer):
    rows, order_id = order(customer.numbers(7))
    # Later ids of the organization, which belong to another order.
    assert call(customer.key, numbers=customer.numbers(3)).status == 200
    with customer.engine.begin() as connection:
        connection.execute(text("UPDATE orders SET number_count = NULL WHERE id = :id"), {"id": order_id})
    for response in lookups(order_id):
        assert_success(response, rows, meta={"order_id": order_id})


def test_ids_may_have_capitals(call, order, customer):
    rows, order_id = order(customer.numbers(1))
    assert call.rpc("GetOrder", customer.key, id=order_id.upper()).body["data"] == rows
    area = new_area_code()
    stock(customer, area)
    data = bulk(call, customer, area, 1)
    assert call.rpc("GetBulkOrder", customer.key, id=data["order_id"].upper()).body["data"] == data


@pytest.mark.parametrize("idempotency_key", ["x" * 255, "!~", 'a"b\\c', "a&b=c#d?e%41+f/../;g", "null"])
def test_an_order_is_found_by_a_key_of_any_characters(call, customer, idempotency_key):
    rows = call(customer.key, numbers=customer.numbers(1), idempotency_key=idempotency_key).body["data"]
    assert call.rpc("FindOrder", customer.key, idempotency_key=idempotency_key).body["data"] == rows


def test_a_key_that_was_sent_in_quotes_is_found_without_them(call, customer):
    rows = call(customer.key, numbers=customer.numbers(1), idempotency_key='"abc"').body["data"]
    assert call.rpc("FindOrder", customer.key, idempotency_key="abc").body["data"] == rows
    assert_not_found(call.rpc("FindOrder", customer.key, idempotency_key='"abc"'))


def test_any_key_of_the_organization_with_the_scope_finds_an_order(call, order, customer, key):
    rows, order_id = order(customer.numbers(1))
    reader = customer.new_key("numbers:read")
    assert call.rpc("GetOrder", reader, id=order_id).body["data"] == rows
    assert call.rpc("FindOrder", reader, idempotency_key=key).body["data"] == rows


def test_two_organizations_find_their_own_orders_under_the_same_key(call, customer, other_customer, key):
    for each in (customer, other_customer):
        rows = call(each.key, numbers=each.numbers(2), idempotency_key=key).body["data"]
        assert call.rpc("FindOrder", each.key, idempotency_key=key).body["data"] == rows


# ---------------------------------------------------------------- as it was then


def import_rows(customer, numbers, number_type, sms, mms, price):
    rows = [",".join(COLUMNS), *(f"{number},{number_type},{sms},{mms},{price}" for number in numbers)]
    assert import_csv(customer.engine, rows).updated == len(numbers)


def new_settings(customer):
    return OTHER_FIELDS | {"campaign_id": str(customer.campaign())}


def life_of(call, customer, other_customer, numbers, ids):
    """Everything that happens to an order's numbers after it, one step at a time."""
    keys = {"customer": customer.key, "other": other_customer.key}

    def each(rpc, who="customer", **request):
        for id_ in ids:
            response = call.rpc(rpc, keys[who], id=id_, **request)
            assert response.status == 200, response
            yield rpc

    yield from each("UpdateNumber", **new_settings(customer))
    import_rows(customer, numbers, "toll_free", "false", "true", "7.50")
    yield "import"
    yield from each("DetachCampaign")
    yield from each("AttachCampaign", campaign_id=str(customer.campaign()))
    yield from each("UpdateNumber", inbound_url="", status_url="", label="")
    yield from each("ReleaseNumber")
    assert call(customer.key, numbers=numbers, **OTHER_FIELDS).status == 200
    yield "ordered again by the same organization"
    import_rows(customer, numbers, "short_code", "true", "true", "0.01")
    yield "import"
    ids = [str(id_) for id_ in sorted(customer.assignment_ids())]
    yield from each("ReleaseNumber")
    let_time_pass(customer, days=31)
    rows = call(other_customer.key, numbers=numbers, **new_settings(other_customer)).body["data"]
    yield "ordered by another organization"
    ids = [row["id"] for row in rows]
    yield from each("UpdateNumber", "other", label="z")
    yield from each("ReleaseNumber", "other")


@pytest.mark.parametrize("fields", [FIELDS, {}], ids=["with settings", "without settings"])
def test_an_order_is_shown_as_it_was_whatever_happens_later(call, customer, other_customer, fields):
    """The time of the order moves into the past with the rest of it."""
    area, key = new_area_code(), str(uuid4())
    numbers = stock(customer, area, 2)
    more = {"campaign_id": str(customer.campaign())} if fields else {}
    rows = call(customer.key, numbers=numbers, **fields, **more, idempotency_key=key).body["data"]
    (order_id,) = values_of(customer, "SELECT id::text FROM orders WHERE organization_id = :id", id=customer.id)
    expected = [without_times(row) for row in rows]
    for step in life_of(call, customer, other_customer, numbers, [row["id"] for row in rows]):
        for lookup in ({"name": "GetOrder", "id": order_id}, {"name": "FindOrder", "idempotency_key": key}):
            response = call.rpc(lookup.pop("name"), customer.key, **lookup)
            assert [without_times(row) for row in response.body["data"]] == expected, step
            assert all(row["created_at"] == row["updated_at"] for row in response.body["data"]), step


def without_times(row):
    return {name: value for name, value in row.items() if not name.endswith("_at")}


def test_a_bulk_order_is_shown_as_it_was_whatever_happens_later(call, customer, other_customer):
    area = new_area_code()
    numbers = stock(customer, area, 2)
    data = bulk(call, customer, area, 2, **FIELDS)
    steps = life_of(call, customer, other_customer, numbers, [row["id"] for row in data["assigned_numbers"]])
    for step in steps:
        if step == "ordered by another organization":
            return
        assert_success(call.rpc("GetBulkOrder", customer.key, id=data["order_id"]), data)
    pytest.fail("the steps have ended too soon")


def test_each_order_of_a_number_is_shown_with_its_own_settings(call, customer):
    """The same organization takes the number back twice."""
    numbers, orders = customer.numbers(1), []
    for label in ("first", "second", "third"):
        key = str(uuid4())
        (row,) = call(customer.key, numbers=numbers, label=label, idempotency_key=key).body["data"]
        orders.append((key, row))
        assert call.rpc("UpdateNumber", customer.key, id=row["id"], label=f"not {label}").status == 200
        assert call.rpc("ReleaseNumber", customer.key, id=row["id"]).status == 200
    for key, row in orders:
        assert call.rpc("FindOrder", customer.key, idempotency_key=key).body["data"] == [row]


def test_a_price_that_an_import_has_changed_is_no_matter(call, order, lookups, customer):
    numbers = stock(customer, new_area_code(), 1)
    rows, order_id = order(numbers)
    import_rows(customer, numbers, "local", "true", "false", "9.99")
    for response in lookups(order_id):
        assert_success(response, rows, meta={"order_id": order_id})


# ---------------------------------------------------------------- refusals


def test_404_for_an_order_that_the_organization_does_not_have(call, customer, other_customer, order, key):
    rows, order_id = order(customer.numbers(1))
    area = new_area_code()
    stock(customer, area)
    bulk_id = bulk(call, customer, area, 1)["order_id"]
    hold_id = call.rpc("HoldNumbers", customer.key, numbers=customer.numbers(1)).body["data"]["id"]
    for id_ in (str(uuid4()), rows[0]["id"], hold_id):
        assert_not_found(call.rpc("GetOrder", customer.key, id=id_))
        assert_not_found(call.rpc("GetBulkOrder", customer.key, id=id_))
    for id_ in (order_id, bulk_id):
        assert_not_found(call.rpc("GetOrder", other_customer.key, id=id_))
        assert_not_found(call.rpc("GetBulkOrder", other_customer.key, id=id_))
    assert_not_found(call.rpc("GetBulkOrder", customer.key, id=order_id))
    assert_not_found(call.rpc("FindOrder", other_customer.key, idempotency_key=key))


def test_404_for_a_key_under_which_no_order_was_carried_out(call, customer, key):
    assert_not_found(call.rpc("FindOrder", customer.key, idempotency_key=key))
    assert call(customer.key, numbers=["+999000000000009"], idempotency_key=key).status == 409
    assert_not_found(call.rpc("FindOrder", customer.key, idempotency_key=key))


def test_404_for_a_key_of_a_write_that_is_no_order(call, customer):
    number, other = customer.numbers(2)
    (row,) = call(customer.key, numbers=[number]).body["data"]
    hold = call.rpc("HoldNumbers", customer.key, header_key="hold", numbers=[other]).body["data"]
    writes = [
        ("ReleaseHold", {"id": hold["id"]}),
        ("UpdateNumber", {"id": row["id"], "label": "x"}),
        ("AttachCampaign", {"id": row["id"], "campaign_id": str(customer.campaign())}),
        ("DetachCampaign", {"id": row["id"]}),
        ("ReleaseNumber", {"id": row["id"]}),
        ("BulkReleaseNumbers", {"ids": [row["id"]]}),
    ]
    for rpc, request in writes:
        assert call.rpc(rpc, customer.key, header_key=rpc, **request).status == 200
    for idempotency_key in ("hold", *(rpc for rpc, _ in writes)):
        assert_not_found(call.rpc("FindOrder", customer.key, idempotency_key=idempotency_key))


def test_malformed_keys_and_ids_are_refused(call, customer):
    rule = "must be one of 1..255 visible ASCII characters"
    for malformed in ("", "a b", "é", "x" * 256):
        response = call.rpc("FindOrder", customer.key, idempotency_key=malformed)
        assert_invalid(response, idempotency_key=rule)
    for rpc in ("GetOrder", "GetBulkOrder"):
        assert_invalid(call.rpc(rpc, customer.key, id="x"), 400, id="must be a UUID")


def test_an_order_under_way_is_not_found(call, customer, key):
    insert = text("INSERT INTO idempotency_key SELECT :id, :key, '', :id, '', clock_timestamp()")
    with customer.engine.connect() as other:  # as another server does before its COMMIT
        other.execute(insert, {"id": customer.id, "key": key})
        assert_not_found(call.rpc("FindOrder", customer.key, idempotency_key=key))
