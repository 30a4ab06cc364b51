"""What a first start finds to play with: an organization with credit, a key, a brand, a campaign and 1,000 numbers."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, Engine, exists, func, select

from server import keys
from server.run.embedded.files import write_private
from server.store import admin, inventory
from server.store.tables import api_key, organization, phone_number

KEY_FILE = "demo.key"
IDS_FILE = "demo.json"
CREDIT_MICROS = 10_000_000_000
PRICE = "1.00"

LOCAL = [f"+1415555{line:04}" for line in range(100, 1000)]
TOLL_FREE = [f"+1800555{line:04}" for line in range(100, 190)]
SHORT_CODES = [f"+12255{line}" for line in range(10)]


def make_demo(engine: Engine, data_dir: Path) -> bool:
    """See to it that the demo is there and its key works. False where it does not belong: among other organizations.

    The files are written first and the transaction committed last: what they name exists, or is made anew.
    """
    with engine.begin() as connection:
        organization_id = _organization_of(connection, data_dir / IDS_FILE)
        if organization_id is not None:
            if not _key_works(connection, organization_id, data_dir / KEY_FILE):
                _make_key(connection, organization_id, data_dir)
            return True
        if connection.execute(select(exists(select(organization.c.id)))).scalar_one():
            return False
    inventory.import_csv(engine, _csv())
    with engine.begin() as connection:
        _make_organization(connection, data_dir)
    return True


def available_numbers(engine: Engine, count: int) -> list[str]:
    """The first of the demo's numbers that nobody has ordered yet, `count` of them or as many as there are."""
    n = phone_number.c
    free = n.assignment_id.is_(None) & (func.coalesce(n.free_at, func.clock_timestamp()) <= func.clock_timestamp())
    with engine.connect() as connection:
        query = select(n.number).where(n.number.in_(LOCAL), free).order_by(n.number).limit(count)
        return list(connection.execute(query).scalars())


def _organization_of(connection: Connection, ids_file: Path) -> UUID | None:
    """The organization that the file names, if it is in this database."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        named = UUID(json.loads(ids_file.read_text())["organization_id"])
        return connection.execute(select(organization.c.id).where(organization.c.id == named)).scalar_one_or_none()
    return None


def _key_works(connection: Connection, organization_id: UUID, key_file: Path) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        digest = keys.digest(key_file.read_text().strip())
        mine = (api_key.c.organization_id == organization_id) & (api_key.c.digest == digest)
        return connection.execute(select(exists().where(mine, api_key.c.revoked_at.is_(None)))).scalar_one()
    return False


def _make_organization(connection: Connection, data_dir: Path) -> None:
    organization_id = admin.create_organization(connection, "Demo", CREDIT_MICROS)
    brand_id = admin.create_brand(connection, organization_id, "Demo brand", "VERIFIED")
    campaign_id = admin.create_campaign(connection, organization_id, "Demo campaign", "ACTIVE", brand_id)
    key_id = _make_key(connection, organization_id, data_dir)
    ids = {"organization_id": organization_id, "key_id": key_id, "brand_id": brand_id, "campaign_id": campaign_id}
    write_private(data_dir / IDS_FILE, json.dumps(ids, default=str, indent=2) + "\n")


def _make_key(connection: Connection, organization_id: UUID, data_dir: Path) -> UUID:
    made = admin.create_key(connection, organization_id, keys.SCOPES)
    write_private(data_dir / KEY_FILE, made.key + "\n")
    return made.id


def _csv() -> Iterator[str]:
    yield ",".join(inventory.COLUMNS)
    for number_type, mms_enabled, numbers in (
        ("local", "true", LOCAL),
        ("toll_free", "false", TOLL_FREE),
        ("short_code", "true", SHORT_CODES),
    ):
        yield from (f"{number},{number_type},true,{mms_enabled},{PRICE}" for number in numbers)
