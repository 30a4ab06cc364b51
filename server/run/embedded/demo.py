"""The demo data of a first start: an organization with credit, a key, a brand, a campaign and 1,000 numbers."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, Engine, exists, select

from server import keys
from server.run.embedded.files import write_private
from server.scopes import SCOPES
from server.store import admin, inventory
from server.store.engine import in_transaction
from server.store.tables import api_key, is_available, organization, phone_number

KEY_FILE = "demo.key"
IDS_FILE = "demo.json"
CREDIT_MICROS = 10_000_000_000
PRICE = "1.00"

AREA_CODE = "415"
LOCAL = [f"+1{AREA_CODE}555{line:04}" for line in range(100, 1000)]
TOLL_FREE = [f"+1800555{line:04}" for line in range(100, 190)]
SHORT_CODES = [f"+12255{line}" for line in range(10)]


def make_demo(engine: Engine, data_dir: Path) -> bool:
    """Create the demo if it does not exist, and replace its key if that does not work.

    Returns False, and changes nothing, if the database has other organizations and no demo.
    """
    exists_already = in_transaction(engine, lambda connection: _repaired_demo(connection, data_dir))
    if exists_already is not None:
        return exists_already
    inventory.import_csv(engine, _csv())
    # The files are written before the commit. If we are killed between the two, the files name an organization that
    # does not exist. Then the next start creates the demo again.
    in_transaction(engine, lambda connection: _make_organization(connection, data_dir))
    return True


def available_numbers(engine: Engine, count: int) -> list[str]:
    """Return the first `count` of the demo's numbers that are available, or fewer if there are not so many."""
    number = phone_number.c.number
    query = select(number).where(number.in_(LOCAL), is_available()).order_by(number).limit(count)
    return in_transaction(engine, lambda connection: list(connection.execute(query).scalars()))


def _repaired_demo(connection: Connection, data_dir: Path) -> bool | None:
    """Whether the demo exists, now with a key that works. None if the database has no organization at all."""
    organization_id = _organization_of(connection, data_dir / IDS_FILE)
    if organization_id is not None:
        if not _key_works(connection, organization_id, data_dir / KEY_FILE):
            _make_key(connection, organization_id, data_dir)
        return True
    return False if connection.execute(select(exists(select(organization.c.id)))).scalar_one() else None


def _organization_of(connection: Connection, ids_file: Path) -> UUID | None:
    """Return the organization that the file names, if it exists in this database."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        named = UUID(json.loads(ids_file.read_text())["organization_id"])
        return connection.execute(select(organization.c.id).where(organization.c.id == named)).scalar_one_or_none()
    return None


def _key_works(connection: Connection, organization_id: UUID, key_file: Path) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        digest = keys.digest(key_file.read_text().strip())
        ours = (api_key.c.organization_id == organization_id) & (api_key.c.digest == digest)
        return connection.execute(select(exists().where(ours, api_key.c.revoked_at.is_(None)))).scalar_one()
    return False


def _make_organization(connection: Connection, data_dir: Path) -> None:
    organization_id = admin.create_organization(connection, "Demo", CREDIT_MICROS)
    brand_id = admin.create_brand(connection, organization_id, "Demo brand", "VERIFIED")
    campaign_id = admin.create_campaign(connection, organization_id, "Demo campaign", "ACTIVE", brand_id)
    key_id = _make_key(connection, organization_id, data_dir)
    ids = {"organization_id": organization_id, "key_id": key_id, "brand_id": brand_id, "campaign_id": campaign_id}
    write_private(data_dir / IDS_FILE, json.dumps(ids, default=str, indent=2) + "\n")


def _make_key(connection: Connection, organization_id: UUID, data_dir: Path) -> UUID:
    new = admin.create_key(connection, organization_id, SCOPES)
    write_private(data_dir / KEY_FILE, new.key + "\n")
    return new.id


def _csv() -> Iterator[str]:
    yield ",".join(inventory.COLUMNS)
    for number_type, mms_enabled, numbers in (
        ("local", "true", LOCAL),
        ("toll_free", "false", TOLL_FREE),
        ("short_code", "true", SHORT_CODES),
    ):
        yield from (f"{number},{number_type},true,{mms_enabled},{PRICE}" for number in numbers)
