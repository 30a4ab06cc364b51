"""The tables, as SQLAlchemy Core sees them. Migrations make them; a test holds the two together."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP

metadata = MetaData()

Instant = TIMESTAMP(timezone=True)
ByCode = Text(collation="C")  # compared byte by byte: one order of locking, whatever the database's locale


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


NUMBER_TYPES = ("local", "toll_free", "short_code")
IDENTITY_STATUSES = ("SELF_DECLARED", "UNVERIFIED", "VERIFIED", "VETTED_VERIFIED")
CAMPAIGN_STATUSES = ("PENDING", "ACTIVE", "REJECTED", "EXPIRED")

# Its row is what every order of an organization locks and changes, so it is kept HOT: room in the page, early vacuum.
organization = Table(
    "organization",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("balance_micros", BigInteger, nullable=False, server_default=text("0")),
    Column("entry_no", BigInteger, nullable=False, server_default=text("0")),  # number of its newest ledger entry
    Column("revision", BigInteger, nullable=False, server_default=text("0")),  # +1 by a change of key, brand, campaign
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("id", name="organization_pkey"),
    CheckConstraint("balance_micros >= 0", name="organization_balance_not_negative"),
    postgresql_with={
        "fillfactor": "20",
        "autovacuum_vacuum_threshold": "500",
        "autovacuum_vacuum_scale_factor": "0",
    },
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("organization_id", Uuid, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the key's text
    Column("scopes", ARRAY(Text), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    PrimaryKeyConstraint("id", name="api_key_pkey"),
    UniqueConstraint("organization_id", "id", name="api_key_of_organization"),
    UniqueConstraint("digest", name="api_key_digest_unique"),
    CheckConstraint("octet_length(digest) = 32", name="api_key_digest_is_sha256"),
    ForeignKeyConstraint(["organization_id"], ["organization.id"], name="api_key_organization_fkey"),
)

brand = Table(
    "brand",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("organization_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("identity_status", Text, nullable=False),
    PrimaryKeyConstraint("id", name="brand_pkey"),
    UniqueConstraint("organization_id", "id", name="brand_of_organization"),
    CheckConstraint(_one_of("identity_status", IDENTITY_STATUSES), name="brand_identity_status_known"),
    ForeignKeyConstraint(["organization_id"], ["organization.id"], name="brand_organization_fkey"),
)

campaign = Table(
    "campaign",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("organization_id", Uuid, nullable=False),
    Column("brand_id", Uuid),
    Column("name", Text, nullable=False),
    Column("status", Text, nullable=False),
    PrimaryKeyConstraint("id", name="campaign_pkey"),
    UniqueConstraint("organization_id", "id", name="campaign_of_organization"),
    CheckConstraint(_one_of("status", CAMPAIGN_STATUSES), name="campaign_status_known"),
    ForeignKeyConstraint(["organization_id"], ["organization.id"], name="campaign_organization_fkey"),
    ForeignKeyConstraint(
        ["organization_id", "brand_id"], ["brand.organization_id", "brand.id"], name="campaign_brand_fkey"
    ),
)

# One row a number, and its whole state: what an order locks is what it decides on.
# No index may name assignment_id: every sale changes it, and must stay a HOT update.
phone_number = Table(
    "phone_number",
    metadata,
    Column("number", ByCode, nullable=False),
    Column("number_type", Text, nullable=False),
    Column("sms_enabled", Boolean, nullable=False),
    Column("mms_enabled", Boolean, nullable=False),
    Column("price_micros", BigInteger, nullable=False),
    Column("assignment_id", Uuid),  # the live assignment; null: nobody's
    Column("held_by", Uuid),  # organization that may take it before free_at; null with free_at: quarantine
    Column("free_at", Instant),  # from then on anyone may take it; null: at once
    PrimaryKeyConstraint("number", name="phone_number_pkey"),
    CheckConstraint(_one_of("number_type", NUMBER_TYPES), name="phone_number_type_known"),
    CheckConstraint("price_micros >= 0", name="phone_number_price_not_negative"),
    CheckConstraint(
        "(assignment_id IS NULL OR free_at IS NULL) AND (held_by IS NULL OR free_at IS NOT NULL)",
        name="phone_number_one_state",
    ),
    postgresql_with={"fillfactor": "90"},
)

orders = Table(
    "orders",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("id", Uuid, nullable=False),  # uuid7, given before the first attempt
    Column("api_key_id", Uuid, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("total_micros", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("number_count", BigInteger),  # null: by a server that did not know the column
    PrimaryKeyConstraint("organization_id", "id", name="orders_pkey"),
    CheckConstraint("total_micros >= 0", name="orders_total_not_negative"),
    ForeignKeyConstraint(
        ["organization_id", "api_key_id"], ["api_key.organization_id", "api_key.id"], name="orders_api_key_fkey"
    ),
)

# No index by order: the check does without (pairing.py), and one costs each sale 5 % of the database's CPU (118 us
# instead of 111 to 113, in batches of 64 orders).
assignment = Table(
    "assignment",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("id", Uuid, nullable=False),  # uuid7: (organization_id, id) descending is "newest first"
    Column("order_id", Uuid, nullable=False),
    Column("number", ByCode, nullable=False),
    Column("inbound_url", Text),
    Column("status_url", Text),
    Column("label", Text),
    Column("campaign_id", Uuid),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("released_at", Instant),
    Column("price_micros", BigInteger),  # what the number cost; null: by a server that did not know the column
    PrimaryKeyConstraint("organization_id", "id", name="assignment_pkey"),
    ForeignKeyConstraint(
        ["organization_id", "order_id"], ["orders.organization_id", "orders.id"], name="assignment_order_fkey"
    ),
    ForeignKeyConstraint(["number"], ["phone_number.number"], name="assignment_number_fkey"),
    ForeignKeyConstraint(
        ["organization_id", "campaign_id"],
        ["campaign.organization_id", "campaign.id"],
        name="assignment_campaign_fkey",
    ),
)
# The database's own word that a number is never sold twice.
Index(
    "assignment_one_live_per_number",
    assignment.c.number,
    unique=True,
    postgresql_where=assignment.c.released_at.is_(None),
)

# Append-only. Numbered per organization from 1 without gaps, each entry with the balance after it.
ledger_entry = Table(
    "ledger_entry",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("entry_no", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("amount_micros", BigInteger, nullable=False),  # what it adds to the balance
    Column("balance_micros", BigInteger, nullable=False),  # the balance after it
    Column("order_id", Uuid),
    Column("note", Text),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("organization_id", "entry_no", name="ledger_entry_pkey"),
    CheckConstraint("balance_micros >= 0", name="ledger_entry_balance_not_negative"),
    CheckConstraint(
        "(kind = 'order' AND order_id IS NOT NULL AND amount_micros <= 0) OR (kind = 'credit' AND order_id IS NULL)",
        name="ledger_entry_kind",
    ),
    ForeignKeyConstraint(
        ["organization_id", "order_id"], ["orders.organization_id", "orders.id"], name="ledger_entry_order_fkey"
    ),
)

# The answers to orders that came with an idempotency key, for a day: they come and go without touching their orders.
idempotency_key = Table(
    "idempotency_key",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("key", ByCode, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),  # SHA-256 of what was asked for
    Column("order_id", Uuid, nullable=False),
    Column("answer", LargeBinary, nullable=False),  # the serialized answer, byte for byte
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("organization_id", "key", name="idempotency_key_pkey"),
)
Index("idempotency_key_created_at", idempotency_key.c.created_at)
