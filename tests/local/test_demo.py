"""The demo data of a first start: created once, and repaired if a part is lost or a start was killed."""

import json
import stat
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from server import keys
from server.run.embedded.demo import LOCAL, available_numbers, make_demo
from server.store import admin, inventory
from server.store.tables import api_key, organization


def organizations(database):
    with database.engine.connect() as connection:
        return connection.execute(select(organization.c.id, organization.c.name)).all()


def key_works(database, folder):
    digest = keys.digest((folder / "demo.key").read_text().strip())
    with database.engine.connect() as connection:
        found = connection.execute(select(api_key.c.revoked_at).where(api_key.c.digest == digest)).all()
    return found == [(None,)]


def test_the_demo_has_everything_that_an_order_needs(database, tmp_path):
    assert make_demo(database.engine, tmp_path)
    ids = {name: UUID(value) for name, value in json.loads((tmp_path / "demo.json").read_text()).items()}
    assert ids.keys() == {"organization_id", "key_id", "brand_id", "campaign_id"}
    with database.engine.connect() as connection:
        demo = admin.show_organization(connection, ids["organization_id"])
        (key,) = admin.list_keys(connection, ids["organization_id"])
        counts = inventory.stats(connection)
    assert (demo.name, demo.balance_micros) == ("Demo", 10_000_000_000)
    assert (key.id, key.scopes, key.expires_at) == (ids["key_id"], ["numbers:read", "numbers:write"], None)
    assert {kind: each["available"] for kind, each in counts.items()} == {
        "local": 900,
        "toll_free": 90,
        "short_code": 10,
    }
    assert stat.S_IMODE((tmp_path / "demo.key").stat().st_mode) == 0o600
    assert key_works(database, tmp_path)


def test_a_second_start_changes_nothing(database, tmp_path):
    make_demo(database.engine, tmp_path)
    before = organizations(database), (tmp_path / "demo.key").read_text(), (tmp_path / "demo.json").read_text()
    assert make_demo(database.engine, tmp_path)
    assert before == (
        organizations(database),
        (tmp_path / "demo.key").read_text(),
        (tmp_path / "demo.json").read_text(),
    )


def test_the_demo_is_created_again_after_a_start_killed_before_its_commit(database, tmp_path):
    (tmp_path / "demo.key").write_text(keys.new_key(uuid4()))
    (tmp_path / "demo.json").write_text(json.dumps({"organization_id": str(uuid4())}))
    assert make_demo(database.engine, tmp_path)
    assert key_works(database, tmp_path)
    assert [name for _, name in organizations(database)] == ["Demo"]


@pytest.mark.parametrize("how", ["lost", "revoked", "spoilt"])
def test_a_key_that_does_not_work_is_replaced(database, tmp_path, how):
    make_demo(database.engine, tmp_path)
    if how == "lost":
        (tmp_path / "demo.key").unlink()
    elif how == "spoilt":
        (tmp_path / "demo.key").write_bytes(b"\xff")
    else:
        with database.engine.begin() as connection:
            admin.revoke_key(connection, UUID(json.loads((tmp_path / "demo.json").read_text())["key_id"]))
    assert make_demo(database.engine, tmp_path)
    assert key_works(database, tmp_path)
    assert len(organizations(database)) == 1


def test_no_demo_is_created_in_a_database_with_other_organizations(database, tmp_path):
    with database.engine.begin() as connection:
        admin.create_organization(connection, "Somebody")
    assert not make_demo(database.engine, tmp_path)
    assert [name for _, name in organizations(database)] == ["Somebody"]
    assert list(tmp_path.iterdir()) == []
    with database.engine.connect() as connection:
        assert inventory.stats(connection)["local"]["available"] == 0


def test_the_first_available_numbers_are_offered(database, tmp_path):
    make_demo(database.engine, tmp_path)
    assert available_numbers(database.engine, 3) == LOCAL[:3] == ["+14155550100", "+14155550101", "+14155550102"]
