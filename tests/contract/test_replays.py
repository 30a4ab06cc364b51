"""Idempotency keys of every write but orders: a call that is sent again is carried out once.

What they share with orders is in test_idempotency.py.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.support.callers import RPCS, Rest, route_of
from tests.support.customer import Customer
from tests.support.inventory import all_rows, assert_invalid, assert_refused, new_area_code, stock, values_of
from tests.support.stack import wait_until

RULE = {"idempotency-key": "must be one of 1..255 visible ASCII characters"}
REUSED = ("IDEMPOTENCY_KEY_REUSED", "idempotency key was used for another request")
UNKNOWN_ID = "0190b0a0-0000-7000-8000-000000000001"


class Case(NamedTuple):
    """A request that can be carried out, another such one, and one that is refused."""

    request: dict[str, Any]
    other: dict[str, Any]
    refused: dict[str, Any]


def ids_of(call, customer, count=2, **fields):
    response = call(customer.key, numbers=customer.numbers(count), **fields)
    return [row["id"] for row in response.body["data"]]


def hold_ids(call, customer, count=2):
    holds = [call.rpc("HoldNumbers", customer.key, numbers=customer.numbers(1)) for _ in range(count)]
    return [hold.body["data"]["id"] for hold in holds]


def bulk_order(call, customer):
    area = new_area_code()
    stock(customer, area, 3)
    request = {"quantity": 1, "area_code": area, "label": "a", "sms_enabled": True}
    return Case(request, request | {"label": "b"}, request | {"quantity": 4})


def hold(call, customer):
    number = customer.numbers(1)
    return Case({"numbers": number}, {"numbers": number, "minutes": 11}, {"numbers": ["+999000000000009"]})


def release_hold(call, customer):
    first, second = hold_ids(call, customer)
    return Case({"id": first}, {"id": second}, {"id": UNKNOWN_ID})


def update(call, customer):
    (id_,) = ids_of(call, customer, 1, label="old", inbound_url="https://example.com/")
    request = {"id": id_, "label": "new", "inbound_url": ""}
    return Case(request, {"id": id_, "label": "new"}, request | {"id": UNKNOWN_ID})


def attach(call, customer):
    (id_,) = ids_of(call, customer, 1)
    first, second = str(customer.campaign()), str(customer.campaign())
    pending = str(customer.campaign(status="PENDING"))
    return Case(*({"id": id_, "campaign_id": campaign_id} for campaign_id in (first, second, pending)))


def detach(call, customer):
    first, second = ids_of(call, customer, campaign_id=str(customer.campaign()))
    return Case({"id": first}, {"id": second}, {"id": UNKNOWN_ID})


def release(call, customer):
    first, second = ids_of(call, customer)
    return Case({"id": first}, {"id": second}, {"id": UNKNOWN_ID})


def bulk_release(call, customer):
    first, second = ids_of(call, customer)
    return Case({"ids": [first, UNKNOWN_ID]}, {"ids": [UNKNOWN_ID, first, second]}, {"ids": ["x"]})


CASES = {
    "BulkOrderNumbers": bulk_order,
    "HoldNumbers": hold,
    "ReleaseHold": release_hold,
    "UpdateNumber": update,
    "AttachCampaign": attach,
    "DetachCampaign": detach,
    "ReleaseNumber": release,
    "BulkReleaseNumbers": bulk_release,
}
READS = ["SearchNumbers", "GetBulkOrder", "GetOrder", "FindOrder", "GetHold", "ListNumbers", "GetNumber"]


@pytest.fixture
def key():
    return str(uuid4())


def is_replayed(response):
    return response.headers.get("idempotency-replayed") == "true"


def test_every_rpc_is_a_read_or_has_a_case():
    assert {*CASES, *READS, "OrderNumbers"} == {*RPCS}


@pytest.mark.parametrize("rpc", CASES)
def test_a_write_sent_again_gets_the_same_response_and_is_carried_out_once(call, customer, key, rpc):
    request = CASES[rpc](call, customer).request
    first = call.rpc(rpc, customer.key, header_key=key, **request)
    before = all_rows(customer)
    again = call.rpc(rpc, customer.key, header_key=key, **request)
    assert (first.status, is_replayed(first)) == (200, False)
    assert (again.status, is_replayed(again)) == (200, True)
    assert first.raw == again.raw
    assert first.request_id != again.request_id
    assert all_rows(customer) == before


def test_the_same_key_with_another_request_is_refused(call, customer):
    for rpc, make in CASES.items():
        case = make(call, customer)
        assert call.rpc(rpc, customer.key, header_key=rpc, **case.request).status == 200
        before = all_rows(customer)
        # Also one that would be refused for another reason, unless it breaks the rule of a field.
        for request in (case.other, case.refused) if rpc != "BulkReleaseNumbers" else (case.other,):
            assert_refused(call.rpc(rpc, customer.key, header_key=rpc, **request), 422, *REUSED)
        assert all_rows(customer) == before
        assert call.rpc(rpc, customer.key, header_key=f"other-{rpc}", **case.other).status == 200


def test_the_same_key_with_another_method_is_refused(call, customer):
    """Each key stays with its method."""
    cases = {rpc: make(call, customer) for rpc, make in CASES.items()}
    used = {rpc: make(call, customer) for rpc, make in CASES.items()}
    for rpc, case in used.items():
        assert call.rpc(rpc, customer.key, header_key=rpc, **case.request).status == 200
    numbers, before = customer.numbers(1), all_rows(customer)
    for rpc, case in cases.items():
        for key in CASES.keys() - {rpc}:
            assert_refused(call.rpc(rpc, customer.key, header_key=key, **case.request), 422, *REUSED)
        assert_refused(call(customer.key, numbers=numbers, idempotency_key=rpc), 422, *REUSED)
    assert all_rows(customer) == before


def test_the_stored_responses_name_their_rpcs(call, customer):
    for rpc, make in CASES.items():
        assert call.rpc(rpc, customer.key, header_key=rpc, **make(call, customer).request).status == 200
    query = "SELECT jsonb_build_array(key, method) FROM idempotency_key WHERE organization_id = :id"
    assert sorted(values_of(customer, query, id=customer.id)) == [[rpc, rpc] for rpc in sorted(CASES)]


def test_the_key_of_an_order_is_refused_with_every_other_method(call, customer, key):
    assert call(customer.key, numbers=customer.numbers(1), idempotency_key=key).status == 200
    for rpc, make in CASES.items():
        assert_refused(call.rpc(rpc, customer.key, header_key=key, **make(call, customer).request), 422, *REUSED)


def test_methods_with_the_same_fields_do_not_share_a_key(call, customer):
    """Detach and release name only a number, and an update can name only a campaign, as attach does."""
    campaign_id = str(customer.campaign())
    pairs = [("DetachCampaign", "ReleaseNumber", {}), ("AttachCampaign", "UpdateNumber", {"campaign_id": campaign_id})]
    for first, second, fields in pairs:
        for one, two in ((first, second), (second, first)):
            (id_,) = ids_of(call, customer, 1)
            key = str(uuid4())
            assert call.rpc(one, customer.key, header_key=key, id=id_, **fields).status == 200
            assert_refused(call.rpc(two, customer.key, header_key=key, id=id_, **fields), 422, *REUSED)


def test_a_refusal_uses_up_no_key(call, customer):
    for rpc, make in CASES.items():
        case = make(call, customer)
        before = all_rows(customer)
        for _ in range(2):
            refused = call.rpc(rpc, customer.key, header_key=rpc, **case.refused)
            assert (refused.body["success"], is_replayed(refused)) == (False, False)
        assert all_rows(customer) == before
        response = call.rpc(rpc, customer.key, header_key=rpc, **case.request)
        assert (response.status, is_replayed(response)) == (200, False)


def test_without_a_key_nothing_is_replayed_or_stored(call, customer):
    for rpc, make in CASES.items():
        request = make(call, customer).request
        responses = [call.rpc(rpc, customer.key, **request) for _ in range(2)]
        assert responses[0].status == 200
        assert not any(map(is_replayed, responses))
    assert values_of(customer, "SELECT key FROM idempotency_key WHERE organization_id = :id", id=customer.id) == []


def test_a_replay_shows_what_was_true_then(call, customer, key):
    (id_,) = ids_of(call, customer, 1, label="a")
    first = call.rpc("UpdateNumber", customer.key, header_key=key, id=id_, label="b")
    assert call.rpc("UpdateNumber", customer.key, id=id_, label="c").status == 200
    assert call.rpc("UpdateNumber", customer.key, header_key=key, id=id_, label="b").raw == first.raw
    assert call.rpc("GetNumber", customer.key, id=id_).body["data"]["label"] == "c"
    released = call.rpc("ReleaseNumber", customer.key, header_key=f"{key}-2", id=id_)
    # The number is 404 now. The replays come before that.
    assert call.rpc("UpdateNumber", customer.key, header_key=key, id=id_, label="b").raw == first.raw
    again = call.rpc("ReleaseNumber", customer.key, header_key=f"{key}-2", id=id_)
    assert again.raw == released.raw


def test_a_replayed_hold_does_not_hold_again(call, customer, key):
    numbers = customer.numbers(1)
    first = call.rpc("HoldNumbers", customer.key, header_key=key, numbers=numbers)
    assert call.rpc("ReleaseHold", customer.key, id=first.body["data"]["id"]).status == 200
    assert call.rpc("HoldNumbers", customer.key, header_key=key, numbers=numbers).raw == first.raw
    assert call(Customer.open(customer.engine).key, numbers=numbers).status == 200


def test_a_replayed_release_does_not_release_the_number_again(call, customer, key):
    numbers = customer.numbers(1)
    (row,) = call(customer.key, numbers=numbers).body["data"]
    first = call.rpc("ReleaseNumber", customer.key, header_key=key, id=row["id"])
    assert call(customer.key, numbers=numbers).status == 200
    assert call.rpc("ReleaseNumber", customer.key, header_key=key, id=row["id"]).raw == first.raw
    assert customer.owned() == {*numbers}


def test_requests_that_mean_the_same_are_the_same(call, customer):
    """Capitals in ids, repeated ids, and defaults that are written out."""
    (id_,) = ids_of(call, customer, 1)
    campaign_id, area, numbers = str(customer.campaign()), new_area_code(), customer.numbers(1)
    stock(customer, area, 2)
    bulk = {"quantity": 1, "area_code": area, "campaign_id": campaign_id}
    upper = {"id": id_.upper(), "campaign_id": campaign_id.upper()}
    pairs = [
        ("AttachCampaign", {"id": id_, "campaign_id": campaign_id}, upper),
        ("UpdateNumber", {"id": id_, "label": "x", "campaign_id": campaign_id}, upper | {"label": "x"}),
        ("DetachCampaign", {"id": id_}, {"id": id_.upper()}),
        ("BulkReleaseNumbers", {"ids": [id_]}, {"ids": [id_.upper(), id_]}),
        ("HoldNumbers", {"numbers": numbers}, {"numbers": numbers, "minutes": 10}),
        ("BulkOrderNumbers", bulk, bulk | {"mode": "atomic", "campaign_id": campaign_id.upper()}),
    ]
    for rpc, request, same in pairs:
        first = call.rpc(rpc, customer.key, header_key=rpc, **request)
        again = call.rpc(rpc, customer.key, header_key=rpc, **same)
        assert (first.status, again.raw, is_replayed(again)) == (200, first.raw, True), rpc


def test_an_absent_an_empty_and_a_false_field_are_different(call, customer):
    (id_,) = ids_of(call, customer, 1, label="a")
    area = new_area_code()
    stock(customer, area, 2)
    order = {"quantity": 1, "area_code": area}
    pairs = [
        ("UpdateNumber", {"id": id_, "label": ""}, {"id": id_}),
        ("UpdateNumber", {"id": id_, "label": ""}, {"id": id_, "label": "", "inbound_url": ""}),
        ("BulkOrderNumbers", order, order | {"mms_enabled": False}),
    ]
    for rpc, request, other in pairs:
        key = str(uuid4())
        assert call.rpc(rpc, customer.key, header_key=key, **request).status == 200
        assert_refused(call.rpc(rpc, customer.key, header_key=key, **other), 422, *REUSED)


def test_another_transport_replays_the_same_write(rest, grpc_direct_call, grpc_edge_call, customer):
    calls = (grpc_direct_call, rest, grpc_edge_call, rest)
    for rpc, make in CASES.items():
        request = make(rest, customer).request
        responses = [call.rpc(rpc, customer.key, header_key=rpc, **request) for call in calls]
        assert [is_replayed(response) for response in responses] == [False, True, True, True]
        assert responses[0].raw == responses[2].raw
        assert responses[1].raw == responses[3].raw
        assert responses[0].body == responses[1].body


def test_a_replay_needs_a_valid_api_key_with_the_scope(call, customer):
    for rpc, make in CASES.items():
        request = make(call, customer).request
        writer = customer.new_key("numbers:write")
        assert call.rpc(rpc, writer, header_key=rpc, **request).status == 200
        customer.revoke_text(writer)
        assert call.rpc(rpc, writer, header_key=rpc, **request).status == 401
        assert call.rpc(rpc, customer.new_key("numbers:read"), header_key=rpc, **request).status == 403
        # All keys of the organization share its idempotency keys.
        assert is_replayed(call.rpc(rpc, customer.key, header_key=rpc, **request))


def test_two_organizations_may_use_the_same_key(call, customer, other_customer, key):
    for each in (customer, other_customer):
        response = call.rpc("HoldNumbers", each.key, header_key=key, numbers=each.numbers(1))
        assert (response.status, is_replayed(response)) == (200, False)


def test_a_malformed_key_is_refused_with_every_method(call, customer):
    for rpc, make in CASES.items():
        request = make(call, customer).request
        before = all_rows(customer)
        for malformed in ("a b", "x" * 256, '"a', [b"a", b"b"]):
            assert_invalid(call.rpc(rpc, customer.key, header_key=malformed, **request), **RULE)
        assert all_rows(customer) == before
    # With a malformed id it is a malformed request.
    response = call.rpc("ReleaseNumber", customer.key, header_key="a b", id="x")
    assert_invalid(response, 400, id="must be a UUID", **RULE)


def test_a_key_in_quotes_is_the_same_key(call, customer):
    for rpc, make in CASES.items():
        request = make(call, customer).request
        assert call.rpc(rpc, customer.key, header_key=f'"{rpc}"', **request).status == 200
        assert is_replayed(call.rpc(rpc, customer.key, header_key=rpc, **request))


def test_a_read_takes_an_idempotency_key_and_does_not_use_it(call, customer, key):
    number, held = customer.numbers(2)
    (row,) = call(customer.key, numbers=[number], idempotency_key=key).body["data"]
    hold_id = call.rpc("HoldNumbers", customer.key, numbers=[held]).body["data"]["id"]
    area = new_area_code()
    stock(customer, area)
    bulk_id = call.rpc("BulkOrderNumbers", customer.key, quantity=1, area_code=area).body["data"]["order_id"]
    requests = {
        "SearchNumbers": {"pattern": number[1:]},
        "GetBulkOrder": {"id": bulk_id},
        "GetOrder": {"id": bulk_id},
        "FindOrder": {"idempotency_key": key},
        "GetHold": {"id": hold_id},
        "ListNumbers": {},
        "GetNumber": {"id": row["id"]},
    }
    assert [*requests] == READS
    for rpc, request in requests.items():
        response = call.rpc(rpc, customer.key, header_key=key, **request)
        assert (response.status, is_replayed(response)) == (200, False), rpc
        assert response.body == call.rpc(rpc, customer.key, **request).body


def test_a_write_waits_for_an_order_that_uses_its_key(call, customer, key):
    """Of another server, which then does not commit it."""
    request = update(call, customer).request
    insert = text("INSERT INTO idempotency_key SELECT :id, :key, '', :id, '', clock_timestamp()")
    with customer.engine.connect() as other, ThreadPoolExecutor() as threads:
        other.execute(insert, {"id": customer.id, "key": key})
        future = threads.submit(call.rpc, "UpdateNumber", customer.key, header_key=key, **request)
        wait_until(lambda: is_waiting(customer))
        other.rollback()
        response = future.result()
    assert (response.status, is_replayed(response)) == (200, False)
    assert is_replayed(call.rpc("UpdateNumber", customer.key, header_key=key, **request))


def is_waiting(customer):
    """Whether a transaction waits for the end of another one that has inserted the same key."""
    query = "SELECT query FROM pg_stat_activity WHERE wait_event = 'transactionid'"
    return any("idempotency_key" in query for query in values_of(customer, query))


@pytest.mark.parametrize("rpc", [rpc for rpc in CASES if route_of(rpc).verb in ("PATCH", "DELETE")])
def test_a_header_of_any_case_is_read_with_patch_and_delete(rest: Rest, customer, key, rpc):
    route, request = route_of(rpc), CASES[rpc](rest, customer).request
    body = b'{"label":"z"}' if route.takes_body else None
    target = route.path(request)
    first, again = (
        rest.send(route.verb, target, customer.key, body, [(name, key)])
        for name in ("Idempotency-Key", "idempotency-KEY")
    )
    assert (first.status, again.status, first.raw) == (200, 200, again.raw)
    assert again.headers["idempotency-replayed"] == "true"
