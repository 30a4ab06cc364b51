"""All admin commands on a real database: what they print, what they change, and their errors."""

import re
import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from server import keys
from server.store import admin
from tests.support.life import Life
from tests.support.retries import in_transaction

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
UNKNOWN = uuid4()


@pytest.fixture
def org(ordernumbers):
    return ordernumbers("org", "create", "Acme")["id"]


def rows(database, query, **values):
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def revision(database, org):
    ((value,),) = rows(database, "SELECT revision FROM organization WHERE id = :id", id=org)
    return value


# ---------------------------------------------------------------- organizations


def test_an_organization_is_created_with_credit_and_shown(ordernumbers, database):
    created = ordernumbers("org", "create", "Acme", "--credit", "100.00")
    assert list(created) == ["id"]
    shown = {"id": created["id"], "name": "Acme", "balance": "100.00", "numbers": 0}
    assert ordernumbers("org", "show", created["id"]) == shown
    ledger = rows(database, "SELECT entry_no, kind, amount_micros, balance_micros, order_id, note FROM ledger_entry")
    assert ledger == [(1, "credit", 100_000_000, 100_000_000, None, None)]


def test_an_organization_without_credit_has_no_ledger_entry(ordernumbers, database, org):
    assert ordernumbers("org", "show", org)["balance"] == "0.00"
    assert rows(database, "SELECT * FROM ledger_entry") == []


def test_the_assigned_numbers_of_an_organization_are_counted(ordernumbers, database, customer):
    assigned, released, held = customer.numbers(3)
    life = Life(database, customer)
    life.order(assigned)
    life.release(life.order(released))
    life.hold(held)
    assert ordernumbers("org", "show", customer.id)["numbers"] == 1


def test_a_name_is_checked(ordernumbers, database):
    for name in ("", "  ", "x" * 256, "two\nlines", "nul\0"):
        assert ordernumbers.refusal("org", "create", name) == (
            "a name must have 1 to 255 characters, not only spaces, and no control characters"
        )
    assert rows(database, "SELECT * FROM organization") == []


def test_a_name_may_be_in_any_script(ordernumbers):
    created = ordernumbers("org", "create", "Łódź [red]電話[/] 📞")
    assert ordernumbers("org", "show", created["id"])["name"] == "Łódź [red]電話[/] 📞"


def test_credit_is_added_and_corrected_in_a_ledger_without_gaps(ordernumbers, database, org):
    assert ordernumbers("org", "credit", org, "100.00", "--note", "invoice 7") == {"balance": "100.00"}
    assert ordernumbers("org", "credit", org, "-0.5") == {"balance": "99.50"}
    assert ordernumbers("org", "credit", org, "0.000001") == {"balance": "99.500001"}
    assert rows(database, "SELECT entry_no, amount_micros, balance_micros, note FROM ledger_entry ORDER BY 1") == [
        (1, 100_000_000, 100_000_000, "invoice 7"),
        (2, -500_000, 99_500_000, None),
        (3, 1, 99_500_001, None),
    ]


def test_a_balance_never_falls_below_zero(ordernumbers, database, org):
    ordernumbers("org", "credit", org, "1.00")
    assert ordernumbers.refusal("org", "credit", org, "-1.000001") == "the balance would fall below zero"
    assert ordernumbers.refusal("org", "create", "Debtor", "--credit=-1") == "the balance would fall below zero"
    assert ordernumbers("org", "show", org)["balance"] == "1.00"
    assert len(rows(database, "SELECT * FROM ledger_entry")) == len(rows(database, "SELECT * FROM organization")) == 1


def test_a_balance_too_large_to_store_is_refused(ordernumbers, database, org):
    with database.engine.begin() as connection:
        admin.add_credit(connection, UUID(org), 2**63 - 1)
    assert ordernumbers.refusal("org", "credit", org, "1") == "the balance would be too large to store"


def test_an_amount_is_decimal_text(ordernumbers, org):
    for amount in ("", "1,5", "1e3", "1.0000001", "1000000000", "NaN", "$5", "٣", "1.", ".5", "+1"):
        assert ordernumbers.refusal("org", "credit", org, amount).startswith(f"{amount!r} is not an amount")


def test_a_credit_of_zero_is_refused(ordernumbers, org):
    assert ordernumbers.refusal("org", "credit", org, "0.00") == "the amount must not be zero"


def test_concurrent_credits_are_numbered_without_gaps(database):
    with database.engine.begin() as connection:
        organization_id = admin.create_organization(connection, "Busy")

    def credit():
        for _ in range(10):
            in_transaction(database.engine, lambda connection: admin.add_credit(connection, organization_id, 1_000_000))

    threads = [threading.Thread(target=credit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = rows(database, "SELECT entry_no, balance_micros FROM ledger_entry ORDER BY entry_no")
    assert ledger == [(i, i * 1_000_000) for i in range(1, 41)]


# ---------------------------------------------------------------- keys


def test_a_key_is_shown_once_and_only_its_digest_is_stored(ordernumbers, database, org):
    created = ordernumbers("key", "create", org, "--scope", "numbers:write", "--scope", "numbers:read")
    assert list(created) == ["id", "key", "scopes", "expires_at"]
    assert keys.is_well_formed(created["key"])
    assert (created["scopes"], created["expires_at"]) == (["numbers:read", "numbers:write"], None)
    assert rows(database, "SELECT digest FROM api_key") == [(keys.digest(created["key"]),)]
    status, out, _ = ordernumbers.run("key", "list", org)
    assert status == 0
    assert created["id"] in out
    assert created["key"] not in out


def test_the_operator_is_warned_that_a_key_is_shown_only_once(ordernumbers, org):
    status, out, _ = ordernumbers.run("key", "create", org, "--scope", "numbers:read")
    text, words = out.splitlines()
    assert status == 0
    assert keys.is_well_formed(text)
    assert "shown only once" in words


def test_a_key_expires_after_the_given_duration(ordernumbers, database, org):
    for duration in ("45s", "5m", "12h", "90d", "2w"):
        ordernumbers("key", "create", org, "--scope", "numbers:read", "--expires-in", duration)
    lives = rows(database, "SELECT round(extract(epoch FROM expires_at - created_at)) FROM api_key ORDER BY id")
    assert lives == [(45,), (5 * 60,), (12 * 3600,), (90 * 86400,), (14 * 86400,)]


def test_a_wrong_duration_is_refused(ordernumbers, org):
    for duration in ("90", "0d", "-1d", "1.5d", "d", "1y", ""):
        refusal = ordernumbers.refusal("key", "create", org, "--scope", "numbers:read", f"--expires-in={duration}")
        assert refusal == f"{duration!r} is not a duration. Write a whole number and a unit (s, m, h, d, w), like 90d"


def test_a_key_that_expires_too_late_is_refused(ordernumbers, org):
    refusal = ordernumbers.refusal("key", "create", org, "--scope", "numbers:read", "--expires-in", "99999w")
    assert refusal == "a key must expire in more than 0 and at most 36500 days"


def test_an_unknown_scope_is_refused(ordernumbers, database, org):
    refusal = ordernumbers.refusal("key", "create", org, "--scope", "numbers:read", "--scope", "numbers:all")
    assert refusal == "a key must have one or more of the scopes numbers:read, numbers:write"
    assert rows(database, "SELECT * FROM api_key") == []


def test_keys_are_listed_oldest_first(ordernumbers, org):
    first = ordernumbers("key", "create", org, "--scope", "numbers:read", "--expires-in", "1d")
    second = ordernumbers("key", "create", org, "--scope", "numbers:write")
    revoked = ordernumbers("key", "revoke", second["id"])
    listed = ordernumbers("key", "list", org)["keys"]
    created = [key.pop("created_at") for key in listed]
    assert listed == [
        {"id": first["id"], "scopes": ["numbers:read"], "expires_at": first["expires_at"], "revoked_at": None},
        {"id": second["id"], "scopes": ["numbers:write"], "expires_at": None, "revoked_at": revoked["revoked_at"]},
    ]
    assert all(map(INSTANT.fullmatch, [*created, first["expires_at"], revoked["revoked_at"]]))


def test_revoking_a_key_again_does_not_change_when_it_was_revoked(database, customer):
    def revoke():
        with database.engine.begin() as connection:
            return admin.revoke_key(connection, customer.key_id)

    at = revoke()
    assert revoke() == at
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)


# ---------------------------------------------------------------- brands and campaigns


def test_a_brand_is_created_and_changed(ordernumbers, database, org):
    brand = ordernumbers("brand", "create", org, "Acme Shoes", "--identity-status", "UNVERIFIED")
    assert list(brand) == ["id"]
    changed = {"id": brand["id"], "identity_status": "VERIFIED"}
    assert ordernumbers("brand", "set", brand["id"], "--identity-status", "VERIFIED") == changed
    assert rows(database, "SELECT name, identity_status FROM brand") == [("Acme Shoes", "VERIFIED")]


def test_a_campaign_is_created_and_changed(ordernumbers, database, org):
    brand = ordernumbers("brand", "create", org, "Acme Shoes", "--identity-status", "VERIFIED")["id"]
    linked = ordernumbers("campaign", "create", org, "Sale", "--brand", brand, "--status", "PENDING")
    assert list(linked) == ["id"]
    ordernumbers("campaign", "create", org, "Free", "--status", "EXPIRED")
    changed = {"id": linked["id"], "status": "ACTIVE"}
    assert ordernumbers("campaign", "set", linked["id"], "--status", "ACTIVE") == changed
    campaigns = rows(database, "SELECT name, status, brand_id FROM campaign ORDER BY name")
    assert campaigns == [("Free", "EXPIRED", None), ("Sale", "ACTIVE", UUID(brand))]


def test_unknown_statuses_are_refused(ordernumbers, org):
    brand = ordernumbers("brand", "create", org, "Acme Shoes", "--identity-status", "VERIFIED")["id"]
    campaign = ordernumbers("campaign", "create", org, "Sale", "--status", "ACTIVE")["id"]
    identity = "a brand's identity status must be one of SELF_DECLARED, UNVERIFIED, VERIFIED, VETTED_VERIFIED"
    assert ordernumbers.refusal("brand", "create", org, "B", "--identity-status", "verified") == identity
    assert ordernumbers.refusal("brand", "set", brand, "--identity-status", "ACTIVE") == identity
    status = "a campaign's status must be one of PENDING, ACTIVE, REJECTED, EXPIRED"
    assert ordernumbers.refusal("campaign", "create", org, "C", "--status", "VERIFIED") == status
    assert ordernumbers.refusal("campaign", "set", campaign, "--status", "") == status


def test_another_organizations_brand_is_refused(ordernumbers, database, org):
    other = ordernumbers("org", "create", "Other")["id"]
    brand = ordernumbers("brand", "create", other, "Theirs", "--identity-status", "VERIFIED")["id"]
    for refused in (brand, UNKNOWN):
        refusal = ordernumbers.refusal("campaign", "create", org, "Sale", "--brand", refused, "--status", "ACTIVE")
        assert refusal == "the brand does not belong to the organization"
    assert rows(database, "SELECT * FROM campaign") == []


def test_an_unknown_id_is_named(ordernumbers):
    for kind, *command in (
        ("organization", "org", "show", UNKNOWN),
        ("organization", "org", "credit", UNKNOWN, "1"),
        ("organization", "key", "create", UNKNOWN, "--scope", "numbers:read"),
        ("organization", "key", "list", UNKNOWN),
        ("key", "key", "revoke", UNKNOWN),
        ("organization", "brand", "create", UNKNOWN, "B", "--identity-status", "VERIFIED"),
        ("brand", "brand", "set", UNKNOWN, "--identity-status", "VERIFIED"),
        ("organization", "campaign", "create", UNKNOWN, "C", "--status", "ACTIVE"),
        ("campaign", "campaign", "set", UNKNOWN, "--status", "ACTIVE"),
    ):
        assert ordernumbers.refusal(*command) == f"no {kind} {UNKNOWN}"


def test_every_change_that_orders_depend_on_raises_the_revision(ordernumbers, database, org):
    def after(*command):
        result = ordernumbers(*command)
        revisions.append(revision(database, org))
        return result["id"]

    revisions = []
    key = after("key", "create", org, "--scope", "numbers:write")
    after("key", "revoke", key)
    brand = after("brand", "create", org, "B", "--identity-status", "VERIFIED")
    after("brand", "set", brand, "--identity-status", "UNVERIFIED")
    campaign = after("campaign", "create", org, "C", "--brand", brand, "--status", "ACTIVE")
    after("campaign", "set", campaign, "--status", "EXPIRED")
    assert revisions == [1, 2, 3, 4, 5, 6]


def test_a_change_waits_for_the_order_that_holds_the_organization(database, customer):
    with database.engine.connect() as order:
        order.execute(text("SELECT FROM organization WHERE id = :id FOR NO KEY UPDATE"), {"id": customer.id})
        before = order.execute(text("SELECT clock_timestamp()")).scalar_one()
        revoking = threading.Thread(target=customer.revoke)
        revoking.start()
        waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        while not order.execute(waits).scalar_one():
            pass
        sold_until = order.execute(text("SELECT clock_timestamp()")).scalar_one()
        order.rollback()
        revoking.join()
    ((revoked_at,),) = rows(database, "SELECT revoked_at FROM api_key")
    assert before < sold_until < revoked_at
