"""An organization for one test, with credit, a key, and numbers that no other test orders."""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ARRAY, Connection, Engine, Text, cast, func, insert, literal, select, text, update

from server import keys
from server.scopes import SCOPES
from server.store import admin
from server.store.tables import api_key, assignment, organization, phone_number
from tests.support.retries import in_transaction

T = TypeVar("T")

CREDIT_MICROS = 1_000_000_000_000
# Each pytest worker takes its numbers from a range of its own.
_next = itertools.count(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) * 10_000_000)


@dataclass(frozen=True)
class Customer:
    """An organization and one key of it, which has every scope."""

    engine: Engine
    id: UUID
    key: str
    key_id: UUID

    @classmethod
    def open(cls, engine: Engine, credit_micros: int = CREDIT_MICROS) -> "Customer":
        def create(connection: Connection) -> Customer:
            id_ = admin.create_organization(connection, "A customer", credit_micros)
            key = admin.create_key(connection, id_, SCOPES)
            return cls(engine, id_, key.key, key.id)

        return in_transaction(engine, create)

    def poor(self) -> "Customer":
        """Another organization, without credit."""
        return Customer.open(self.engine, credit_micros=0)

    # ---------------------------------------------------------------- what the test gives it

    def numbers(self, count: int, **columns: Any) -> list[str]:
        """Add numbers to the inventory, at one credit each. `columns` are other values for their rows."""
        numbers = [f"+1900{next(_next):010}" for _ in range(count)]
        row = {"number_type": "local", "sms_enabled": True, "mms_enabled": False, "price_micros": 1_000_000, **columns}
        number = func.unnest(cast(numbers, ARRAY(Text))).column_valued()
        rows = select(number, *(literal(value, phone_number.c[name].type) for name, value in row.items()))
        self._do(lambda connection: connection.execute(insert(phone_number).from_select(["number", *row], rows)))
        return numbers

    def quarantined_numbers(self, count: int) -> list[str]:
        numbers = self.numbers(count)
        quarantine = update(phone_number).where(phone_number.c.number.in_(numbers))
        self._do(lambda connection: connection.execute(quarantine.values(free_at=func.now() + timedelta(days=1))))
        return numbers

    def new_key(self, *scopes: str) -> str:
        return self._do(lambda connection: admin.create_key(connection, self.id, scopes)).key

    def unknown_key(self) -> str:
        return keys.new_key(self.id)

    def expired_key(self) -> str:
        def create(connection: Connection) -> str:
            key = admin.create_key(connection, self.id, SCOPES, timedelta(hours=1))
            past = func.now() - timedelta(seconds=1)
            connection.execute(update(api_key).where(api_key.c.id == key.id).values(expires_at=past))
            return key.key

        return self._do(create)

    def revoked_key(self, *scopes: str) -> str:
        def create(connection: Connection) -> str:
            key = admin.create_key(connection, self.id, scopes or SCOPES)
            admin.revoke_key(connection, key.id)
            return key.key

        return self._do(create)

    def revoke(self) -> None:
        self._do(lambda connection: admin.revoke_key(connection, self.key_id))

    def revoke_text(self, key: str) -> None:
        """Revoke a key by its text."""
        (key_id,) = self._all(select(api_key.c.id).where(api_key.c.digest == keys.digest(key)))
        self._do(lambda connection: admin.revoke_key(connection, key_id))

    def credit(self, micros: int) -> None:
        self._do(lambda connection: admin.add_credit(connection, self.id, micros))

    def campaign(self, status: str = "ACTIVE", identity_status: str | None = "VERIFIED") -> UUID:
        """Create a campaign with a brand of that identity status. With None it has no brand."""

        def create(connection: Connection) -> UUID:
            brand_id = identity_status and admin.create_brand(connection, self.id, "A brand", identity_status)
            return admin.create_campaign(connection, self.id, "A campaign", status, brand_id or None)

        return self._do(create)

    def set_campaign(self, campaign_id: str, status: str) -> None:
        self._do(lambda connection: admin.set_campaign(connection, UUID(campaign_id), status))

    # ---------------------------------------------------------------- what it has

    def owned(self) -> set[str]:
        return set(self._all(select(assignment.c.number).where(self._is_live())))

    def assignment_ids(self) -> set[UUID]:
        return set(self._all(select(assignment.c.id).where(self._is_live())))

    def label_of(self, number: str) -> str | None:
        (label,) = self._all(select(assignment.c.label).where(self._is_live(), assignment.c.number == number))
        return label

    def balance_micros(self) -> int:
        (balance,) = self._all(select(organization.c.balance_micros).where(organization.c.id == self.id))
        return int(balance)

    def everything(self) -> list[Any]:
        """The current values of all that an order can change."""
        tables = ("orders", "assignment", "ledger_entry")
        counts = [f"SELECT count(*) FROM {t} WHERE organization_id = '{self.id}'" for t in tables]
        return [self._all(text(query)) for query in counts] + [self.balance_micros()]

    def _is_live(self) -> Any:
        return (assignment.c.organization_id == self.id) & assignment.c.released_at.is_(None)

    def _all(self, query: Any) -> Sequence[Any]:
        return self._do(lambda connection: connection.execute(query).scalars().all())

    def _do(self, work: Callable[[Connection], T]) -> T:
        return in_transaction(self.engine, work)
