"""GetNumber, UpdateNumber, AttachCampaign and DetachCampaign: one number of an organization, and its settings."""

from uuid import uuid4

import pytest

from tests.support.inventory import (
    all_rows,
    assert_invalid,
    assert_not_found,
    assert_refused,
    assert_success,
    let_time_pass,
    stored_number,
    values_of,
)

FIELDS = {"inbound_url": "https://example.com/in?a=b", "status_url": "https://8.8.8.8/s", "label": "Zoë 東京 🙂 %s"}
OTHER_FIELDS = {"inbound_url": "https://example.org/", "status_url": "https://example.org/?x", "label": "x" * 255}
CLEARED = dict.fromkeys(FIELDS, "")
SETTINGS = """
    SELECT jsonb_build_object('inbound_url', inbound_url, 'status_url', status_url, 'label', label,
        'campaign_id', campaign_id)
    FROM assignment WHERE id = CAST(:id AS uuid)
"""
EVENTS = """
    SELECT jsonb_build_array(kind, organization_id, api_key_id, before, after)
    FROM number_event WHERE number = :number ORDER BY id
"""


@pytest.fixture
def order(call, customer):
    """Order one number, and return its row."""

    def order(**fields):
        (row,) = call(customer.key, numbers=customer.numbers(1), **fields).body["data"]
        return row

    return order


@pytest.fixture
def update(call, customer):
    return lambda row, **fields: call.rpc("UpdateNumber", customer.key, id=row["id"], **fields)


def settings_of(customer, row):
    """The settings in the database."""
    (settings,) = values_of(customer, SETTINGS, id=row["id"])
    return settings


def events_of(customer, row):
    """What the history of the number has, without ids and times."""
    return values_of(customer, EVENTS, number=row["number"])


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def assert_changed(response, customer, row, **fields):
    """The response, GetNumber's row and the database have these settings, and else the row has not changed."""
    expected = without(row, *FIELDS, "campaign_id") | {n: v for n, v in fields.items() if v is not None}
    expected["updated_at"] = stored_number(customer, row["id"])["updated_at"]
    assert_success(response, expected)
    assert settings_of(customer, row) == {**dict.fromkeys((*FIELDS, "campaign_id")), **fields}
    assert stored_number(customer, row["id"]) == expected


# ---------------------------------------------------------------- GetNumber


def test_a_number_is_returned_as_it_was_ordered(call, customer, order):
    for row in (order(), order(**FIELDS, campaign_id=str(customer.campaign()))):
        assert_success(call.rpc("GetNumber", customer.key, id=row["id"]), row)
        assert_success(call.rpc("GetNumber", customer.new_key("numbers:read"), id=row["id"].upper()), row)
        assert row == stored_number(customer, row["id"])


def test_every_field_of_an_order_is_in_the_database(customer, order):
    fields = FIELDS | {"campaign_id": str(customer.campaign())}
    assert settings_of(customer, order(**fields)) == fields
    assert settings_of(customer, order()) == dict.fromkeys(fields)


def test_a_number_has_the_type_and_capabilities_of_the_inventory(call, customer):
    numbers = customer.numbers(1, number_type="short_code", sms_enabled=False, mms_enabled=True)
    (row,) = call(customer.key, numbers=numbers).body["data"]
    data = call.rpc("GetNumber", customer.key, id=row["id"]).body["data"]
    assert (data["number_type"], data["sms_enabled"], data["mms_enabled"]) == ("short_code", False, True)


REQUESTS = {
    "GetNumber": {},
    "UpdateNumber": {"label": "x"},
    "AttachCampaign": {"campaign_id": "0190b0a0-0000-7000-8000-000000000001"},
    "DetachCampaign": {},
}


@pytest.mark.parametrize("rpc", REQUESTS)
def test_404_for_a_number_that_the_organization_does_not_have(call, customer, other_customer, order, rpc):
    """An unknown one, another organization's and a released one look the same, also with an unknown campaign."""
    released, live = order(), order()
    assert call.rpc("ReleaseNumber", customer.key, id=released["id"]).status == 200
    hold = call.rpc("HoldNumbers", customer.key, numbers=customer.numbers(1)).body["data"]
    before = all_rows(customer), all_rows(other_customer)
    for id_ in (str(uuid4()), released["id"], hold["id"]):
        assert_not_found(call.rpc(rpc, customer.key, id=id_, **REQUESTS[rpc]))
    assert_not_found(call.rpc(rpc, other_customer.key, id=live["id"], **REQUESTS[rpc]))
    assert (all_rows(customer), all_rows(other_customer)) == before


@pytest.mark.parametrize("rpc", REQUESTS)
def test_400_for_a_malformed_id(call, customer, rpc):
    for malformed in ("x", "0190b0a0000070008000000000000001", "{0190b0a0-0000-7000-8000-000000000001}"):
        response = call.rpc(rpc, customer.key, id=malformed, **REQUESTS[rpc])
        assert_invalid(response, 400, id="must be a UUID")


# ---------------------------------------------------------------- UpdateNumber


def test_every_field_of_an_update_is_in_the_response_and_in_the_database(customer, order, update):
    row = order(**FIELDS, campaign_id=str(customer.campaign()))
    fields = OTHER_FIELDS | {"campaign_id": str(customer.campaign())}
    assert_changed(update(row, **fields), customer, row, **fields)


@pytest.mark.parametrize("name", FIELDS)
def test_an_update_of_one_field_keeps_the_others(customer, order, update, name):
    had = FIELDS | {"campaign_id": str(customer.campaign())}
    row = order(**had)
    changed = {name: OTHER_FIELDS[name]}
    assert_changed(update(row, **changed), customer, row, **(had | changed))
    assert_changed(update(row, **{name: ""}), customer, row, **(had | {name: None}))
    assert_changed(update(row, **changed), customer, row, **(had | changed))


def test_an_empty_text_removes_a_setting(customer, order, update):
    campaign_id = str(customer.campaign())
    row = order(**FIELDS, campaign_id=campaign_id)
    assert_changed(update(row, **CLEARED), customer, row, campaign_id=campaign_id)
    # What is removed already stays so.
    assert_changed(update(row, **CLEARED), customer, row, campaign_id=campaign_id)


def test_null_keeps_a_setting(rest, customer, order):
    had = FIELDS | {"campaign_id": str(customer.campaign())}
    row = order(**had)
    response = rest.rpc("UpdateNumber", customer.key, id=row["id"], **dict.fromkeys(had))
    assert_success(response, row)
    response = rest.rpc("UpdateNumber", customer.key, id=row["id"], label="new", inbound_url=None)
    assert_changed(response, customer, row, **(had | {"label": "new"}))


def test_an_update_moves_its_time_and_no_other(call, customer, order, update):
    row = order(**FIELDS)
    let_time_pass(customer, hours=1)
    earlier = call.rpc("GetNumber", customer.key, id=row["id"]).body["data"]
    assert earlier["created_at"] == earlier["updated_at"] < row["created_at"]
    data = update(row, label="new").body["data"]
    assert data["created_at"] == earlier["created_at"]
    assert data["updated_at"] >= row["updated_at"]
    assert call.rpc("GetNumber", customer.key, id=row["id"]).body["data"] == data


@pytest.mark.parametrize("same", ["nothing", "the same values", "the values removed already"])
def test_an_update_without_a_change_changes_nothing(customer, order, update, same):
    campaign_id = str(customer.campaign())
    row = order() if same == "the values removed already" else order(**FIELDS, campaign_id=campaign_id)
    let_time_pass(customer, hours=1)
    earlier, before = stored_number(customer, row["id"]), all_rows(customer)
    fields = {
        "nothing": {},
        "the same values": FIELDS | {"campaign_id": campaign_id.upper()},
        "the values removed already": CLEARED,
    }[same]
    assert_success(update(row, **fields), earlier)
    assert all_rows(customer) == before


def test_an_update_with_several_faults_is_refused_for_the_first(customer, order, update):
    """Each update has all the faults of the later ones too."""
    row, unknown, pending = order(), str(uuid4()), str(customer.campaign(status="PENDING"))
    before = all_rows(customer)
    assert update({"id": "x"}, label=" ", campaign_id=unknown).status == 400
    assert update({"id": unknown}, label=" ", campaign_id=unknown).status == 422
    assert_not_found(update({"id": unknown}, campaign_id=pending))
    assert_not_found(update(row, campaign_id=unknown))
    assert_invalid(update(row, campaign_id=pending), campaign_id="must be ACTIVE")
    assert all_rows(customer) == before


def test_an_update_is_in_the_history(customer, order, update):
    row = order(label="a", inbound_url="https://example.com/")
    update(row, label="b", inbound_url="", status_url="https://example.com/")
    before = {"label": "a", "inbound_url": "https://example.com/", "status_url": None}
    after = {"label": "b", "inbound_url": None, "status_url": "https://example.com/"}
    assert events_of(customer, row) == [["routed", str(customer.id), str(customer.key_id), before, after]]


def test_an_update_changes_only_its_own_number(call, customer, other_customer, order, update):
    other = order(label="a")
    (others,) = call(other_customer.key, numbers=other_customer.numbers(1), label="a").body["data"]
    update(order(label="a"), label="b")
    assert settings_of(customer, other)["label"] == settings_of(other_customer, others)["label"] == "a"


URL, LABEL, UUID = "must be a public https:// URL", "must be 1..255 chars", "must be a UUID"
WRONG = {
    "inbound_url": (["http://example.com", "https://10.0.0.1/", "https://a#b", "https://u@example.com", " "], URL),
    "status_url": (["x", "https://localhost/", "https://example.com/" + "x" * 2048], URL),
    "label": ([" ", "\u200b", "a\nb", "x" * 256], LABEL),
    "campaign_id": (["", "x", " "], UUID),
}


def test_a_field_that_breaks_its_rule_is_422(call, customer, order, update):
    row = order(**FIELDS, campaign_id=str(customer.campaign()))
    before = all_rows(customer)
    for name, (values, rule) in WRONG.items():
        for value in values:
            assert_invalid(update(row, **{name: value}), **{name: rule})
    wrong = {name: values[0] for name, (values, _) in WRONG.items()}
    assert_invalid(update(row, **wrong), **{name: rule for name, (_, rule) in WRONG.items()})
    assert_invalid(update({"id": "x"}, **wrong), 400, id=UUID, **{name: rule for name, (_, rule) in WRONG.items()})
    assert all_rows(customer) == before


@pytest.mark.parametrize("member", ["number", "number_type", "sms_enabled", "id", "x", "inboundUrl", "released_at"])
def test_another_member_is_400(rest, customer, order, member):
    row = order(**FIELDS)
    before = all_rows(customer)
    body = f'{{"label": "new", "{member}": null}}'.encode()
    response = rest.send("PATCH", f"/v1/phone-numbers/{row['id']}", customer.key, body)
    assert_refused(response, 400, "INVALID_INPUT", "malformed request", details={member: "unknown member"})
    assert all_rows(customer) == before


# ---------------------------------------------------------------- campaigns


def into(call, customer, way):
    """How to put a number into a campaign: by an update or by AttachCampaign."""
    rpc = {"update": "UpdateNumber", "attach": "AttachCampaign"}[way]
    return lambda row, campaign_id: call.rpc(rpc, customer.key, id=row["id"], campaign_id=str(campaign_id))


both_ways = pytest.mark.parametrize("way", ["update", "attach"])


@both_ways
def test_a_number_joins_a_campaign_and_another_one(call, customer, order, way):
    join, row = into(call, customer, way), order(**FIELDS)
    for identity_status in ("VERIFIED", "VETTED_VERIFIED"):
        campaign_id = str(customer.campaign(identity_status=identity_status))
        assert_changed(join(row, campaign_id.upper()), customer, row, **FIELDS, campaign_id=campaign_id)
    let_time_pass(customer, hours=1)
    earlier, before = stored_number(customer, row["id"]), all_rows(customer)
    assert_success(join(row, campaign_id), earlier)
    assert all_rows(customer) == before


@both_ways
def test_404_for_an_unknown_campaign_and_for_one_of_another_organization(call, customer, other_customer, order, way):
    join, row = into(call, customer, way), order()
    before = all_rows(customer)
    for campaign_id in (uuid4(), other_customer.campaign()):
        assert_not_found(join(row, campaign_id))
    assert all_rows(customer) == before


@both_ways
def test_422_for_a_campaign_that_may_not_send(call, customer, order, way):
    join, row = into(call, customer, way), order()
    before = all_rows(customer)
    for campaign in ({"status": "PENDING"}, {"status": "REJECTED"}, {"status": "EXPIRED", "identity_status": None}):
        assert_invalid(join(row, customer.campaign(**campaign)), campaign_id="must be ACTIVE")
    for identity_status in ("UNVERIFIED", "SELF_DECLARED", None):
        campaign_id = customer.campaign(identity_status=identity_status)
        assert_invalid(join(row, campaign_id), campaign_id="brand must be VERIFIED or VETTED_VERIFIED")
    assert all_rows(customer) == before


@both_ways
def test_the_number_is_looked_for_before_the_campaign(call, customer, other_customer, order, way):
    """With a campaign that would be 422, another organization's number is 404."""
    row = order()
    pending = other_customer.campaign(status="PENDING")
    assert_not_found(into(call, other_customer, way)(row, pending))


@both_ways
def test_a_campaign_that_may_not_send_any_more_is_refused_even_if_the_number_is_in_it(call, customer, order, way):
    campaign_id = str(customer.campaign())
    row = order(campaign_id=campaign_id)
    customer.set_campaign(campaign_id, "EXPIRED")
    assert_invalid(into(call, customer, way)(row, campaign_id), campaign_id="must be ACTIVE")
    # The number keeps it, and other settings can change.
    data = call.rpc("UpdateNumber", customer.key, id=row["id"], label="x").body["data"]
    assert (data["label"], data["campaign_id"]) == ("x", campaign_id)


def test_a_malformed_campaign_is_422(call, customer, order):
    row = order()
    for campaign_id in ("", "x"):
        response = call.rpc("AttachCampaign", customer.key, id=row["id"], campaign_id=campaign_id)
        assert_invalid(response, campaign_id=UUID)
    assert_invalid(call.rpc("AttachCampaign", customer.key, id=row["id"]), campaign_id=UUID)


def test_a_number_leaves_its_campaign(call, customer, order):
    campaign_id = str(customer.campaign())
    row, other = order(**FIELDS, campaign_id=campaign_id), order(campaign_id=campaign_id)
    assert_changed(call.rpc("DetachCampaign", customer.key, id=row["id"]), customer, row, **FIELDS)
    assert settings_of(customer, other)["campaign_id"] == campaign_id
    assert events_of(customer, row) == [
        ["routed", str(customer.id), str(customer.key_id), {"campaign_id": campaign_id}, {"campaign_id": None}]
    ]


def test_a_number_without_a_campaign_may_leave_it(call, customer, order):
    row = order(**FIELDS)
    let_time_pass(customer, hours=1)
    earlier, before = stored_number(customer, row["id"]), all_rows(customer)
    assert_success(call.rpc("DetachCampaign", customer.key, id=row["id"]), earlier)
    assert all_rows(customer) == before


def test_a_number_leaves_a_campaign_that_may_not_send_any_more(call, customer, order):
    campaign_id = str(customer.campaign())
    row = order(campaign_id=campaign_id)
    customer.set_campaign(campaign_id, "REJECTED")
    assert_changed(call.rpc("DetachCampaign", customer.key, id=row["id"]), customer, row)
