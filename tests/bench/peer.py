"""The side "peer": the service that most people would write, with FastAPI and the ORM of SQLAlchemy.

It has our schema, and makes the same checks and the same rows. An order is one transaction. It has no idempotency
keys, no `validate_only` and no rate limit. It may also sell once more after a revocation that commits during the order.

`DATABASE_URL=… uvicorn tests.bench.peer:app --workers 2` runs it.
"""

import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, StringConstraints, UrlConstraints, field_validator
from sqlalchemy import make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, relationship
from ulid import ULID
from uuid_utils.compat import uuid7

from server.errors import Code, Refusal, Shortage
from server.store import tables

database_url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
new_session = async_sessionmaker(create_async_engine(database_url, pool_size=16, max_overflow=0))
app = FastAPI(title="Orders of phone numbers")


class Base(DeclarativeBase):
    metadata = tables.metadata


class Organization(Base):
    __table__ = tables.organization


class ApiKey(Base):
    __table__ = tables.api_key


class PhoneNumber(Base):
    __table__ = tables.phone_number


class Assignment(Base):
    __table__ = tables.assignment


class LedgerEntry(Base):
    __table__ = tables.ledger_entry


class Order(Base):
    __table__ = tables.orders
    assignments = relationship(Assignment)
    ledger_entries = relationship(LedgerEntry)


Brand, Campaign = tables.brand.c, tables.campaign.c

# ---------------------------------------------------------------- requests and responses

E164 = Annotated[str, StringConstraints(pattern=r"^\+[1-9][0-9]{1,14}$")]
HttpsUrl = Annotated[HttpUrl, UrlConstraints(allowed_schemes=["https"], max_length=2048)]


class Routing(BaseModel):
    inbound_url: HttpsUrl | None = None
    status_url: HttpsUrl | None = None
    label: str | None = Field(None, min_length=1, max_length=255)
    campaign_id: UUID | None = None


class OrderRequest(Routing):
    model_config = ConfigDict(extra="forbid")
    numbers: list[E164] = Field(min_length=1, max_length=100)

    @field_validator("numbers")
    @classmethod
    def must_not_repeat(cls, numbers: list[str]) -> list[str]:
        if len(set(numbers)) < len(numbers):
            raise ValueError("must not repeat a number")
        return numbers


class OrderedNumber(Routing):
    id: UUID
    number: str
    number_type: str
    sms_enabled: bool
    mms_enabled: bool
    created_at: datetime
    updated_at: datetime


class OrderResponse(BaseModel):
    success: bool = True
    data: list[OrderedNumber]


@app.exception_handler(Refusal)
async def refused(_: Request, refusal: Refusal) -> JSONResponse:
    error = {"code": refusal.code, "message": refusal.message, "details": refusal.details}
    data = refusal.shortage and asdict(refusal.shortage)
    return JSONResponse({"success": False, "error": error, "data": data}, refusal.http_status)


@app.exception_handler(RequestValidationError)
async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    details = {".".join(map(str, each["loc"][1:])): each["msg"] for each in error.errors()}
    return await refused(request, Refusal(Code.VALIDATION_FAILED, details=details))


# ---------------------------------------------------------------- an order


async def open_session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(open_session)]
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def authenticate(session: Session, bearer: Bearer) -> ApiKey:
    digest = hashlib.sha256(bearer.credentials.encode()).digest() if bearer else b""
    key = await session.scalar(select(ApiKey).where(ApiKey.digest == digest))
    if key is None or key.revoked_at or (key.expires_at and key.expires_at <= datetime.now(UTC)):
        raise Refusal(Code.UNAUTHORIZED)
    if "numbers:write" not in key.scopes:
        raise Refusal(Code.FORBIDDEN)
    return key


@app.post("/v1/phone-numbers/orders", response_model_exclude_none=True)
async def order_numbers(
    request: OrderRequest, session: Session, key: Annotated[ApiKey, Depends(authenticate)]
) -> OrderResponse:
    wanted = select(PhoneNumber).where(PhoneNumber.number.in_(request.numbers)).order_by(PhoneNumber.number)
    rows = {row.number: row for row in await session.scalars(wanted.with_for_update())}
    organization = await session.get_one(Organization, key.organization_id, with_for_update=True)
    if request.campaign_id:
        await require_campaign(session, organization, request.campaign_id)
    now = datetime.now(UTC)
    unavailable = [number for number in request.numbers if not is_available(rows.get(number), organization, now)]
    if unavailable:
        shortage = Shortage(len(request.numbers) - len(unavailable), unavailable)
        raise Refusal(Code.INSUFFICIENT_INVENTORY, shortage=shortage)
    numbers = [rows[number] for number in request.numbers]
    order = charge(organization, key, numbers, now)
    session.add(order)
    sold = [assign(order, number, request, now) for number in numbers]
    await session.commit()
    return OrderResponse(data=sold)


async def require_campaign(session: AsyncSession, organization: Organization, campaign_id: UUID) -> None:
    statuses = select(Campaign.status, Brand.identity_status).outerjoin_from(tables.campaign, tables.brand)
    found = statuses.where(Campaign.id == campaign_id, Campaign.organization_id == organization.id)
    campaign = (await session.execute(found)).one_or_none()
    if campaign is None:
        raise Refusal(Code.NOT_FOUND)
    if campaign.status != "ACTIVE" or campaign.identity_status not in ("VERIFIED", "VETTED_VERIFIED"):
        raise Refusal(Code.VALIDATION_FAILED, details={"campaign_id": "must be ACTIVE, of a verified brand"})


def is_available(row: PhoneNumber | None, organization: Organization, now: datetime) -> bool:
    if row is None or row.assignment_id:
        return False
    return row.free_at is None or row.free_at <= now or row.held_by == organization.id


def charge(organization: Organization, key: ApiKey, numbers: list[PhoneNumber], now: datetime) -> Order:
    total_micros = sum(number.price_micros for number in numbers)
    if total_micros > organization.balance_micros:
        raise Refusal(Code.INSUFFICIENT_CREDIT)
    organization.balance_micros -= total_micros
    organization.entry_no += 1
    entry = LedgerEntry(
        entry_no=organization.entry_no,
        kind="order",
        amount_micros=-total_micros,
        balance_micros=organization.balance_micros,
        created_at=now,
    )
    return Order(
        organization_id=organization.id,
        id=uuid7(),
        api_key_id=key.id,
        request_id=str(ULID()),
        total_micros=total_micros,
        number_count=len(numbers),
        created_at=now,
        ledger_entries=[entry],
    )


def assign(order: Order, number: PhoneNumber, request: OrderRequest, now: datetime) -> OrderedNumber:
    routing = request.model_dump(exclude={"numbers"}, mode="json") | {"campaign_id": request.campaign_id}
    fields = {"id": uuid7(), "number": number.number, "created_at": now, "updated_at": now, **routing}
    order.assignments.append(Assignment(price_micros=number.price_micros, **fields))
    number.assignment_id = fields["id"]
    number.held_by = number.free_at = number.hold_id = None
    return OrderedNumber(
        number_type=number.number_type, sms_enabled=number.sms_enabled, mms_enabled=number.mms_enabled, **fields
    )
