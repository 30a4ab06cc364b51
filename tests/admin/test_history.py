"""The history of a number: all that happened to it, when, and by whom. It is printed as sentences or as JSON."""

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from server.rules.values import Routing
from server.store.history import Assigned, Event, history, routing_at_order, with_ends
from server.store.inventory import import_csv
from tests.support.customer import Customer
from tests.support.inventory import let_time_pass
from tests.support.life import REQUEST_ID, Life

NUMBER = "+14155550100"
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture
def import_row(database):
    def run(row):
        lines = ["number,number_type,sms_enabled,mms_enabled,price\n", f"{NUMBER},{row}\n"]
        return import_csv(database.engine, lines)

    return run


@pytest.fixture
def life(database, customer, import_row):
    """What a customer does with the number, which is in the inventory."""
    import_row("local,true,false,1.00")
    return Life(database, customer)


@pytest.fixture
def told(ordernumbers):
    """The events of the number as JSON, without the values that each test knows."""

    def run():
        result = ordernumbers("number", "history", NUMBER)
        assert result["number"] == NUMBER
        return result["events"]

    return run


def kinds(events):
    return [event["kind"] for event in events]


def column(database, query):
    with database.engine.connect() as connection:
        return connection.execute(text(query)).scalar_one()


def by(customer, **details):
    """What an event of a customer has, besides its time and kind."""
    who = {"organization_id": str(customer.id), "api_key_id": str(customer.key_id), "request_id": REQUEST_ID}
    return {**who, "is_computed": False, **details}


NOBODY = {"organization_id": None, "api_key_id": None, "request_id": None}


# ---------------------------------------------------------------- each kind of event


def test_a_number_that_is_not_in_the_inventory_has_no_history(ordernumbers):
    assert ordernumbers.refusal("number", "history", "+19") == "no number +19"
    assert ordernumbers.run("number", "history", "+19") == (1, "", "ordernumbers: no number +19\n")


def test_the_import_is_told_with_its_time(life, told, database):
    imported_at = column(database, "SELECT imported_at FROM phone_number")
    assert told() == [{"at": f"{imported_at:%Y-%m-%dT%H:%M:%SZ}", "kind": "imported"}]


def test_an_import_by_an_older_version_is_told_without_its_time(ordernumbers, database, life, told):
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE phone_number SET imported_at = NULL"))
    assert told() == [{"at": None, "kind": "imported"}]
    assert ordernumbers.run("number", "history", NUMBER) == (0, "at an unknown time    imported\n", "")


def test_a_change_by_an_import_is_told_with_what_changed_only(ordernumbers, life, told, import_row):
    import_row("local,false,false,1.50")
    _, changed = told()
    assert INSTANT.fullmatch(changed.pop("at"))
    before, after = {"price": "1.00", "sms_enabled": True}, {"price": "1.50", "sms_enabled": False}
    assert changed == {"kind": "changed", "is_computed": False, **NOBODY, "before": before, "after": after}
    _, out, _ = ordernumbers.run("number", "history", NUMBER)
    assert out.splitlines()[1][22:] == "changed by an import: sms_enabled true → false, price 1.00 → 1.50"


def test_a_hold_is_told_with_its_end(life, told, customer, database):
    hold = life.hold(NUMBER, minutes=30)
    expires_at = column(database, "SELECT expires_at FROM hold")
    _, held = told()
    assert held == {
        "at": f"{expires_at - timedelta(minutes=30):%Y-%m-%dT%H:%M:%SZ}",
        "kind": "held",
        **by(customer, hold_id=str(hold), expires_at=f"{expires_at:%Y-%m-%dT%H:%M:%SZ}"),
    }


def test_an_order_is_told_with_its_price_and_its_settings(ordernumbers, life, told, customer, database):
    campaign = str(customer.campaign())
    settings = {"inbound_url": "https://example.com/in", "status_url": None, "label": "Sales", "campaign_id": campaign}
    assignment = life.order(NUMBER, **settings)
    order = str(column(database, "SELECT id FROM orders"))
    _, assigned = told()
    assert INSTANT.fullmatch(assigned.pop("at"))
    assert assigned == {
        "kind": "assigned",
        **by(customer, order_id=order, assignment_id=str(assignment), price="1.00", routing=settings),
    }
    _, out, _ = ordernumbers.run("number", "history", NUMBER)
    assert out.splitlines()[1][22:] == (
        f"assigned for 1.00 by order {order}, inbound_url https://example.com/in, label Sales, campaign_id {campaign}"
        f" (organization {customer.id}, key {customer.key_id}, request {REQUEST_ID})"
    )


def test_an_order_by_an_older_version_is_told_without_its_price(ordernumbers, database, life, told):
    life.order(NUMBER)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE assignment SET price_micros = NULL"))
        connection.execute(text("UPDATE orders SET number_count = NULL"))
    assert told()[1]["price"] is None
    assert "assigned for an unknown price by order" in ordernumbers.run("number", "history", NUMBER)[1]


def test_changes_of_the_settings_are_told_and_the_order_has_those_of_then(ordernumbers, life, told, customer):
    assignment = life.order(NUMBER, label="first", inbound_url="https://example.com/in")
    life.route(assignment, label="second", inbound_url=None)
    life.route(assignment, label="third", status_url="https://example.com/status")
    life.release(assignment)
    _, assigned, first, second, released = told()
    assert assigned["routing"] == {
        "inbound_url": "https://example.com/in",
        "status_url": None,
        "label": "first",
        "campaign_id": None,
    }
    for event in (first, second):
        assert INSTANT.fullmatch(event.pop("at"))
    assert first == {
        "kind": "routed",
        **by(
            customer,
            before={"label": "first", "inbound_url": "https://example.com/in"},
            after={"label": "second", "inbound_url": None},
        ),
    }
    assert (second["before"], second["after"]) == (
        {"label": "second", "status_url": None},
        {"label": "third", "status_url": "https://example.com/status"},
    )
    assert released["before"]["label"] == "third"
    lines = ordernumbers.run("number", "history", NUMBER)[1].splitlines()
    assert lines[2][22:].startswith(
        "routed: label first → second, inbound_url https://example.com/in → none (organization "
    )


def test_a_release_is_told_with_the_end_of_the_rest(ordernumbers, life, told, customer):
    available_at = f"{life.release(life.order(NUMBER)):%Y-%m-%dT%H:%M:%SZ}"
    released = told()[-1]
    assert INSTANT.fullmatch(released.pop("at"))
    settings = {"inbound_url": None, "status_url": None, "label": None, "campaign_id": None}
    assert released == {"kind": "released", **by(customer, available_at=available_at, before=settings)}
    line = ordernumbers.run("number", "history", NUMBER)[1].splitlines()[-1]
    assert line[22:].startswith(f"released, and rests until {available_at} (organization {customer.id}, key ")


def test_a_release_by_an_operator_has_no_key_and_no_request(ordernumbers, life, told, customer):
    life.order(NUMBER)
    ordernumbers("number", "release", NUMBER)
    released = told()[-1]
    assert (released["kind"], released["organization_id"]) == ("released", str(customer.id))
    assert (released["api_key_id"], released["request_id"]) == (None, None)
    line = ordernumbers.run("number", "history", NUMBER)[1].splitlines()[-1]
    assert line.endswith(f"(organization {customer.id})")


def test_control_characters_in_a_label_are_escaped(ordernumbers, database, life):
    life.order(NUMBER)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE assignment SET label = E'\\x1b[2J'"))
    assert r"label \x1b[2J" in ordernumbers.run("number", "history", NUMBER)[1]


# ---------------------------------------------------------------- whole lives


def test_the_ends_of_holds_and_rests_are_told_at_their_times(ordernumbers, life, told, customer, database):
    life.hold(NUMBER)
    let_time_pass(customer, minutes=11)
    life.release(life.order(NUMBER))
    life.end_hold(life.hold(NUMBER))
    let_time_pass(customer, hours=2)
    events = told()
    assert kinds(events) == [
        *("imported", "held", "hold_expired", "available", "assigned"),
        *("released", "held", "hold_released", "available"),
    ]
    computed = [event for event in events if event.get("is_computed")]
    assert [event["kind"] for event in computed] == ["hold_expired", "available", "available"]
    for event in computed:
        assert event == {"at": event["at"], "kind": event["kind"], "is_computed": True, **NOBODY}
    assert computed[0]["at"] == computed[1]["at"] == events[1]["expires_at"]
    assert computed[2]["at"] == events[5]["available_at"]
    lines = ordernumbers.run("number", "history", NUMBER)[1].splitlines()
    assert lines[2:4] == [
        f"{computed[0]['at']}  hold expired (computed)",
        f"{computed[1]['at']}  available again to every organization (computed)",
    ]


def test_each_order_of_a_number_has_its_own_settings(life, told, database):
    life.release(life.order(NUMBER, label="one"), rest_ms=0)
    other = Life(database, Customer.open(database.engine))
    assignment = other.order(NUMBER, label="two")
    other.route(assignment, label="three")
    other.release(assignment)
    other.order(NUMBER)
    events = told()
    orders = [event for event in events if event["kind"] == "assigned"]
    assert [order["routing"]["label"] for order in orders] == ["one", "two", None]
    owners = [life.customer.id, other.customer.id, other.customer.id]
    assert [UUID(order["organization_id"]) for order in orders] == owners
    assert kinds(events) == [
        *("imported", "assigned", "released", "available", "assigned", "routed", "released", "assigned"),
    ]


def test_other_numbers_have_histories_of_their_own(life, told, customer):
    other, *more = customer.numbers(3)
    life.hold(other, *more)
    life.release(life.order(other))
    assert kinds(told()) == ["imported"]


def test_the_history_is_of_one_moment(database, life, monkeypatch):
    """A release between two statements is either wholly in it, or not at all."""

    def routings(connection):
        events = history(connection, NUMBER).events
        return [event.details["routing"]["label"] for event in events if event.kind == "assigned"]

    assignment = life.order(NUMBER, label="ours")
    with database.engine.begin() as connection:
        run = connection.execute

        def execute(statement, *values):
            result = run(statement, *values)
            if "FROM number_event" in str(statement) and "UNION" not in str(statement):
                life.release(assignment)
            return result

        monkeypatch.setattr(connection, "execute", execute)
        assert routings(connection) == ["ours"]
    with database.engine.begin() as connection:
        assert routings(connection) == ["ours"]


# ---------------------------------------------------------------- the ends, without a database

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def at(minutes):
    return NOW + timedelta(minutes=minutes)


def held(minute, until):
    return Event(at(minute), "held", {"expires_at": at(until)})


def released(minute, until):
    return Event(at(minute), "released", {"available_at": at(until)})


def event(minute, kind):
    return Event(at(minute), kind)


@pytest.mark.parametrize(
    ("stored", "now", "ends"),
    [
        ([], 100, []),
        ([held(0, 10)], 9, []),
        ([held(0, 10)], 10, [(10, "hold_expired"), (10, "available")]),
        ([held(0, 10), held(5, 20)], 19, []),
        ([held(0, 10), held(5, 20)], 99, [(20, "hold_expired"), (20, "available")]),
        ([held(0, 10), held(12, 20)], 13, [(10, "hold_expired"), (10, "available")]),
        ([held(0, 10), event(5, "assigned")], 99, []),
        ([held(0, 10), event(10, "assigned")], 99, [(10, "hold_expired"), (10, "available")]),
        ([held(0, 10), event(5, "hold_released")], 99, [(5, "available")]),
        ([held(0, 10), event(5, "changed")], 99, [(10, "hold_expired"), (10, "available")]),
        ([held(0, 10), event(15, "changed")], 99, [(10, "hold_expired"), (10, "available")]),
        ([released(0, 30)], 29, []),
        ([released(0, 30)], 30, [(30, "available")]),
        ([released(0, 30), event(5, "assigned")], 99, []),
        ([released(0, 30), held(5, 10)], 20, [(10, "hold_expired")]),
        ([released(0, 30), held(5, 10)], 99, [(10, "hold_expired"), (30, "available")]),
        ([released(0, 30), held(25, 40)], 35, []),
        ([released(0, 30), held(25, 40)], 99, [(40, "hold_expired"), (40, "available")]),
        ([released(0, 30), held(5, 10), event(7, "hold_released")], 99, [(30, "available")]),
        ([released(0, 30), held(25, 40), event(35, "hold_released")], 99, [(35, "available")]),
        ([released(0, 30), held(31, 40)], 99, [(30, "available"), (40, "hold_expired"), (40, "available")]),
        ([released(0, 30), event(5, "assigned"), released(6, 16)], 99, [(16, "available")]),
        ([event(0, "assigned"), event(1, "routed"), event(2, "changed")], 99, []),
    ],
)
def test_the_ends_of_holds_and_rests_are_computed(stored, now, ends):
    events = list(with_ends(stored, at(now)))
    assert [each for each in events if not each.is_computed] == stored
    computed = [each for each in events if each.is_computed]
    assert [((each.at - NOW).seconds // 60, each.kind) for each in computed] == ends
    assert [each.at for each in events] == sorted(each.at for each in events)


def test_the_settings_of_an_order_are_those_before_the_first_change_after_it():
    order = Assigned(at(10), uuid4(), uuid4(), 1, Routing(label="now", status_url="s"), uuid4(), uuid4(), "r")
    changes = [
        Event(at(30), "released", {"before": {"label": "late", "inbound_url": "i"}}),
        Event(at(20), "routed", {"before": {"label": "then"}}),
        Event(at(10), "routed", {"before": {"status_url": "of an earlier order"}}),
        Event(at(15), "changed", {"before": {"price_micros": 1}}),
    ]
    expected = {"label": "then", "status_url": "s", "inbound_url": "i", "campaign_id": None}
    assert routing_at_order(order, changes) == expected
