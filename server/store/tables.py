"""The tables for SQLAlchemy Core, and when a number is available. Migrations create them. A test compares the two."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    and_,
    func,
    or_,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

metadata = MetaData()

Instant = TIMESTAMP(timezone=True)
_NOW = func.clock_timestamp(type_=Instant)  # not now(): that is the time when the transaction started
# Text compared byte by byte. So all transactions lock in the same order, whatever the locale of the database.
TextByBytes = Text(collation="C")


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


NUMBER_TYPES = ("local", "toll_free", "short_code")
IDENTITY_STATUSES = ("SELF_DECLARED", "UNVERIFIED", "VERIFIED", "VETTED_VERIFIED")
CAMPAIGN_STATUSES = ("PENDING", "ACTIVE", "REJECTED", "EXPIRED")

# Every order updates the row of its organization. These storage settings keep the updates HOT: free space in each page,
# and an early vacuum.
organization = Table(
    "organization",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("balance_micros", BigInteger, nullable=False, server_default=text("0")),
    Column("entry_no", BigInteger, nullable=False, server_default=text("0")),  # of the newest ledger entry
    Column("revision", BigInteger, nullable=False, server_default=text("0")),  # +1 per change of key, brand, campaign
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

# A row has the whole state of a number, so that an order decides on the row that it locks.
# No index may include assignment_id: every order changes it, and that must stay a HOT update.
phone_number = Table(
    "phone_number",
    metadata,
    Column("number", TextByBytes, nullable=False),
    Column("number_type", Text, nullable=False),
    Column("sms_enabled", Boolean, nullable=False),
    Column("mms_enabled", Boolean, nullable=False),
    Column("price_micros", BigInteger, nullable=False),
    Column("assignment_id", Uuid),  # the live assignment, or null
    Column("held_by", Uuid),  # the organization that may order it before free_at. Null: none may
    Column("free_at", Instant),  # the end of a hold or a rest. Then every organization may order it
    Column("hold_id", Uuid),  # the hold that it is in. Without a meaning unless held_by is set
    Column("rest_until", Instant),  # the end of its last rest after a release
    Column("imported_at", Instant),  # null if imported by a program that did not know the column
    PrimaryKeyConstraint("number", name="phone_number_pkey"),
    CheckConstraint(_one_of("number_type", NUMBER_TYPES), name="phone_number_type_known"),
    CheckConstraint("price_micros >= 0", name="phone_number_price_not_negative"),
    CheckConstraint(
        "(assignment_id IS NULL OR free_at IS NULL) AND (held_by IS NULL OR free_at IS NOT NULL)",
        name="phone_number_one_state",
    ),
    # Room for new versions of rows in each page. Then a sale of consecutive numbers is HOT too.
    postgresql_with={"fillfactor": "50"},
)
# For searches (search_indexes.py builds them). No sale changes any of these columns.
Index(
    "phone_number_search",
    phone_number.c.number_type,
    phone_number.c.sms_enabled,
    phone_number.c.mms_enabled,
    phone_number.c.number,
)
Index(
    "phone_number_digits",
    phone_number.c.number,
    postgresql_using="gin",
    postgresql_ops={"number": "gin_trgm_ops"},
)


def is_available(organization_id: UUID | None = None, now: ColumnElement[datetime] = _NOW) -> ColumnElement[bool]:
    """Whether the organization can order a phone_number. Without an organization: whether every organization can.

    That is so if it is not assigned, and neither held by another organization nor resting after its release. Orders use
    the same rule in Python, `rules.ordering.is_available`. A test compares the two.
    """
    n = phone_number.c
    may_order = or_(n.free_at.is_(None), n.free_at <= now)
    if organization_id is not None:
        # IS NOT DISTINCT FROM is false for a null in held_by, where = would be null.
        may_order = or_(may_order, n.held_by.is_not_distinct_from(organization_id))
    return and_(n.assignment_id.is_(None), may_order)


orders = Table(
    "orders",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("id", Uuid, nullable=False),  # uuid7, chosen before the first attempt
    Column("api_key_id", Uuid, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("total_micros", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("number_count", BigInteger),  # null if written by a server that did not know the column
    Column("quantity", BigInteger),  # how many numbers a bulk order asked for. Null for an order of named numbers
    PrimaryKeyConstraint("organization_id", "id", name="orders_pkey"),
    CheckConstraint("total_micros >= 0", name="orders_total_not_negative"),
    ForeignKeyConstraint(
        ["organization_id", "api_key_id"], ["api_key.organization_id", "api_key.id"], name="orders_api_key_fkey"
    ),
)

# No index by order_id. It would cost 5 % of the database's CPU (118 us per order instead of 111 to 113 us, in batches
# of 64 orders). Only the check could use it, and works without it (pairing.py).
assignment = Table(
    "assignment",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("id", Uuid, nullable=False),  # uuid7: (organization_id, id) descending is "newest first"
    Column("order_id", Uuid, nullable=False),
    Column("number", TextByBytes, nullable=False),
    Column("inbound_url", Text),
    Column("status_url", Text),
    Column("label", Text),
    Column("campaign_id", Uuid),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("released_at", Instant),
    Column("price_micros", BigInteger),  # of the number. Null if written by a server that did not know the column
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
# A second guarantee that a number is never assigned twice. The first one is that each order locks its numbers.
Index(
    "assignment_one_live_per_number",
    assignment.c.number,
    unique=True,
    postgresql_where=assignment.c.released_at.is_(None),
)

# Append-only. The entries of an organization have the numbers 1, 2, 3 … without gaps.
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

# The stored responses to writes with an idempotency key. They are deleted after a day. Their orders stay unchanged.
idempotency_key = Table(
    "idempotency_key",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("key", TextByBytes, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),  # SHA-256 of the request's content
    Column("order_id", Uuid, nullable=False),  # the id of the order, or of another write
    Column("answer", LargeBinary, nullable=False),  # the serialized response
    Column("created_at", Instant, nullable=False),
    Column("method", Text),  # the RPC, if the response is not to an order
    PrimaryKeyConstraint("organization_id", "key", name="idempotency_key_pkey"),
)
Index("idempotency_key_created_at", idempotency_key.c.created_at)

# A hold counts until it expires or is released. Nothing deletes it or has to be on time.
hold = Table(
    "hold",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("id", Uuid, nullable=False),  # uuid7
    Column("api_key_id", Uuid, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("numbers", ARRAY(Text), nullable=False),  # of the request, in its order
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("released_at", Instant),
    PrimaryKeyConstraint("organization_id", "id", name="hold_pkey"),
    CheckConstraint("expires_at > created_at", name="hold_ends"),
    ForeignKeyConstraint(
        ["organization_id", "api_key_id"], ["api_key.organization_id", "api_key.id"], name="hold_api_key_fkey"
    ),
)
Index("hold_expires_at", hold.c.organization_id, hold.c.expires_at)

EVENT_KINDS = ("changed", "held", "hold_released", "routed", "released")

# What happened to numbers, besides orders. Append-only. `before` and `after` have the values that changed.
number_event = Table(
    "number_event",
    metadata,
    Column("number", TextByBytes, nullable=False),
    Column("id", Uuid, nullable=False),  # uuid7, of the write. All numbers of a write have the same
    Column("kind", Text, nullable=False),
    Column("organization_id", Uuid),  # the owner. Null for a change by an import
    Column("api_key_id", Uuid),  # null for a change by an operator
    Column("request_id", Text),
    Column("before", JSONB, nullable=False, server_default=text("'{}'")),
    Column("after", JSONB, nullable=False, server_default=text("'{}'")),
    Column("created_at", Instant, nullable=False),
    PrimaryKeyConstraint("number", "id", name="number_event_pkey"),
    CheckConstraint(_one_of("kind", EVENT_KINDS), name="number_event_kind_known"),
)

# What `ordernumbers archive` has moved from the database to a file. No row: nothing yet.
archive = Table(
    "archive",
    metadata,
    Column("organization_id", Uuid, nullable=False),
    Column("archived_before", Instant, nullable=False),  # rows that are older may be gone
    Column("entry_no", BigInteger, nullable=False, server_default=text("0")),  # of the last ledger entry that is gone
    Column("balance_micros", BigInteger, nullable=False, server_default=text("0")),  # the balance after that entry
    Column("entries_until", Instant),  # the latest creation of a ledger entry that is gone
    PrimaryKeyConstraint("organization_id", name="archive_pkey"),
    ForeignKeyConstraint(["organization_id"], ["organization.id"], name="archive_organization_fkey"),
)
