"""What operators do: organizations, credit, keys, brands and campaigns. Each function runs in the caller's transaction.

A change of a key, brand or campaign first locks the row of its organization, by raising `revision`. Every order locks
that row too. So an order is either wholly before the change or wholly after it.

Every function raises OperatorError for an unknown id, a value that is not allowed, or a brand of another organization.
The caller must then roll back its transaction.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.errors import NumericValueOutOfRange
from sqlalchemy import Connection, CursorResult, Executable, Row, Table, func, select, update
from sqlalchemy.exc import DataError, IntegrityError
from uuid_utils.compat import uuid7

from server.errors import OperatorError
from server.keys import digest, new_key
from server.scopes import SCOPES
from server.store.tables import (
    CAMPAIGN_STATUSES,
    IDENTITY_STATUSES,
    api_key,
    assignment,
    brand,
    campaign,
    ledger_entry,
    organization,
)

TEXT_CHARS_MAX = 255
KEY_LIFE_MAX = timedelta(days=36_500)

# Not now(): that is the time when the transaction started, before it waited for a lock.
_NOW = func.clock_timestamp()

# The database checks these rules itself. The keys are the names of its constraints.
_MESSAGES = {
    "organization_balance_not_negative": "the balance would fall below zero",
    "brand_identity_status_known": f"a brand's identity status must be one of {', '.join(IDENTITY_STATUSES)}",
    "campaign_status_known": f"a campaign's status must be one of {', '.join(CAMPAIGN_STATUSES)}",
    "campaign_brand_fkey": "the brand does not belong to the organization",
}


class Organization(NamedTuple):
    """An organization, its credit balance in micros, and the count of numbers assigned to it now."""

    id: UUID
    name: str
    balance_micros: int
    numbers: int


class NewKey(NamedTuple):
    """A new key and its text. The text cannot be read again: the database stores only its digest."""

    id: UUID
    key: str


class KeyInfo(NamedTuple):
    """What the database stores about a key, except its digest.

    `expires_at` is None if it never expires, and `revoked_at` is None if it is not revoked.
    """

    id: UUID
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def create_organization(connection: Connection, name: str, credit_micros: int = 0) -> UUID:
    """Create an organization, with a first ledger entry if it starts with credit. Return its id."""
    organization_id = uuid7()
    row = {"id": organization_id, "name": _checked_text("a name", name), "created_at": _NOW}
    _execute(connection, organization.insert().values(row))
    if credit_micros:
        add_credit(connection, organization_id, credit_micros)
    return organization_id


def add_credit(connection: Connection, organization_id: UUID, amount_micros: int, note: str | None = None) -> int:
    """Write a ledger entry, and return the balance after it in micros. A negative amount corrects an earlier entry.

    Raises OperatorError if the amount is zero or the balance would fall below zero.
    """
    if amount_micros == 0:
        raise OperatorError("the amount must not be zero")
    # The update locks the row, so that no other transaction can use the same entry_no.
    after = _change_organization(
        connection,
        organization_id,
        balance_micros=organization.c.balance_micros + amount_micros,
        entry_no=organization.c.entry_no + 1,
    )
    row = {
        "organization_id": organization_id,
        "entry_no": after.entry_no,
        "kind": "credit",
        "amount_micros": amount_micros,
        "balance_micros": after.balance_micros,
        "note": note and _checked_text("a note", note),
        "created_at": _NOW,
    }
    _execute(connection, ledger_entry.insert().values(row))
    return int(after.balance_micros)


def show_organization(connection: Connection, organization_id: UUID) -> Organization:
    """Return the organization as it is now."""
    numbers = (
        select(func.count())
        .select_from(assignment)
        .where(assignment.c.organization_id == organization.c.id, assignment.c.released_at.is_(None))
        .scalar_subquery()
    )
    query = select(organization.c.id, organization.c.name, organization.c.balance_micros, numbers)
    row = _execute(connection, query.where(organization.c.id == organization_id)).one_or_none()
    if row is None:
        raise OperatorError(f"no organization {organization_id}")
    return Organization._make(row)


def create_key(
    connection: Connection, organization_id: UUID, scopes: Sequence[str], expires_in: timedelta | None = None
) -> NewKey:
    """Create a key for the organization. It never expires if `expires_in` is None."""
    if not scopes or not set(scopes) <= set(SCOPES):
        raise OperatorError(f"a key must have one or more of the scopes {', '.join(SCOPES)}")
    if expires_in is not None and not timedelta(0) < expires_in <= KEY_LIFE_MAX:
        raise OperatorError(f"a key must expire in more than 0 and at most {KEY_LIFE_MAX.days} days")
    _lock_organization(connection, organization_id)
    created = NewKey(uuid7(), new_key(organization_id))
    row = {
        "id": created.id,
        "organization_id": organization_id,
        "digest": digest(created.key),
        "scopes": sorted(set(scopes)),
        "created_at": _NOW,
        "expires_at": None if expires_in is None else _NOW + expires_in,
    }
    _execute(connection, api_key.insert().values(row))
    return created


def list_keys(connection: Connection, organization_id: UUID) -> list[KeyInfo]:
    """Return every key that the organization has or had, oldest first."""
    show_organization(connection, organization_id)  # raises for an unknown id, which would otherwise list no keys
    columns = (api_key.c.id, api_key.c.scopes, api_key.c.created_at, api_key.c.expires_at, api_key.c.revoked_at)
    query = select(*columns).where(api_key.c.organization_id == organization_id).order_by(api_key.c.id)
    return [KeyInfo._make(row) for row in _execute(connection, query)]  # ids are uuid7: sorted by creation


def revoke_key(connection: Connection, key_id: UUID) -> datetime:
    """Revoke a key, and return when it was revoked. After the caller's COMMIT no order succeeds with it."""
    _lock_owner(connection, api_key, "key", key_id)
    # A key that is already revoked keeps its first time.
    revoked_at = func.coalesce(api_key.c.revoked_at, _NOW)
    change = update(api_key).where(api_key.c.id == key_id).values(revoked_at=revoked_at)
    revoked: datetime = _execute(connection, change.returning(api_key.c.revoked_at)).scalar_one()
    return revoked


def create_brand(connection: Connection, organization_id: UUID, name: str, identity_status: str) -> UUID:
    """Create a brand of the organization, and return its id."""
    _lock_organization(connection, organization_id)
    brand_id = uuid7()
    row = {
        "id": brand_id,
        "organization_id": organization_id,
        "name": _checked_text("a name", name),
        "identity_status": identity_status,
    }
    _execute(connection, brand.insert().values(row))
    return brand_id


def set_brand(connection: Connection, brand_id: UUID, identity_status: str) -> None:
    """Change a brand's identity status."""
    _lock_owner(connection, brand, "brand", brand_id)
    _execute(connection, update(brand).where(brand.c.id == brand_id).values(identity_status=identity_status))


def create_campaign(
    connection: Connection, organization_id: UUID, name: str, status: str, brand_id: UUID | None = None
) -> UUID:
    """Create a campaign of the organization, linked to one of its brands or to none. Return its id."""
    _lock_organization(connection, organization_id)
    campaign_id = uuid7()
    row = {
        "id": campaign_id,
        "organization_id": organization_id,
        "brand_id": brand_id,
        "name": _checked_text("a name", name),
        "status": status,
    }
    _execute(connection, campaign.insert().values(row))
    return campaign_id


def set_campaign(connection: Connection, campaign_id: UUID, status: str) -> None:
    """Change a campaign's status."""
    _lock_owner(connection, campaign, "campaign", campaign_id)
    _execute(connection, update(campaign).where(campaign.c.id == campaign_id).values(status=status))


def _lock_organization(connection: Connection, organization_id: UUID) -> None:
    """Lock the organization's row until the end of the transaction. Its orders wait."""
    _change_organization(connection, organization_id, revision=organization.c.revision + 1)


def _lock_owner(connection: Connection, table: Table, kind: str, row_id: UUID) -> None:
    """Lock the row of the organization that a row of `table` belongs to."""
    # This reads without a lock, which is safe: a row never moves to another organization.
    owner = _execute(connection, select(table.c.organization_id).where(table.c.id == row_id)).scalar_one_or_none()
    if owner is None:
        raise OperatorError(f"no {kind} {row_id}")
    _lock_organization(connection, owner)


def _change_organization(connection: Connection, organization_id: UUID, **changes: Any) -> Row[Any]:
    change = update(organization).where(organization.c.id == organization_id).values(changes)
    columns = (organization.c.balance_micros, organization.c.entry_no)
    row = _execute(connection, change.returning(*columns)).one_or_none()
    if row is None:
        raise OperatorError(f"no organization {organization_id}")
    return row


def _checked_text(what: str, value: str) -> str:
    # isprintable() is false for control characters. One of them, NUL, cannot be stored by PostgreSQL.
    if not value.strip() or len(value) > TEXT_CHARS_MAX or not value.isprintable():
        raise OperatorError(
            f"{what} must have 1 to {TEXT_CHARS_MAX} characters, not only spaces, and no control characters"
        )
    return value


def _execute(connection: Connection, statement: Executable) -> CursorResult[Any]:
    """Run the statement. Raise OperatorError with a readable message if the database refuses a value."""
    try:
        return connection.execute(statement)
    except IntegrityError as error:
        constraint = error.orig.diag.constraint_name if isinstance(error.orig, psycopg.Error) else None
        if constraint not in _MESSAGES:
            raise  # no operator can cause this: a bug must show its traceback
        raise OperatorError(_MESSAGES[constraint]) from None
    except DataError as error:
        if not isinstance(error.orig, NumericValueOutOfRange):
            raise
        raise OperatorError("the balance would be too large to store") from None
