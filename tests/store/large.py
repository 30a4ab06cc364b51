"""A database with 200,000 numbers and what belongs to them, and the plans of our statements there."""

import asyncio
import json
from typing import Any

from psycopg import sql
from sqlalchemy import text

from server.config import Settings
from server.store.connection import connect
from server.store.statements import BoundStatement, Statement
from tests.support.customer import Customer
from tests.support.databases import Database

AREA_CODES = 20
NUMBERS_PER_AREA_CODE = 10_000
FILL = """
    SET LOCAL session_replication_role = replica;  -- without checks of foreign keys, which would take most of the time

    INSERT INTO phone_number (number, number_type, sms_enabled, mms_enabled, price_micros)
    SELECT '+1' || 300 + i / {per_code} || 5550000 + i % {per_code},
      CASE WHEN i % 10 = 0 THEN 'toll_free' ELSE 'local' END, i % 3 <> 0, i % 7 = 0, 1000000
    FROM generate_series(0, {numbers} - 1) AS i;

    -- Every second number is sold. One organization has half of those.
    INSERT INTO orders (organization_id, id, api_key_id, request_id, total_micros, number_count, created_at)
    SELECT organization_id, ('01900000-0000-7000-8000-' || lpad(to_hex(2 * i), 12, '0'))::uuid, id, '', 0, 1, now()
    FROM (SELECT *, row_number() OVER (ORDER BY id) - 1 AS k FROM api_key) AS owner
    JOIN generate_series(1, {numbers} - 1, 2) AS i ON i / 2 % 2 = k;
    INSERT INTO assignment (organization_id, id, order_id, number, label, created_at, updated_at)
    SELECT organization_id, ('01900000-0000-7000-8000-' || lpad(to_hex(2 * i + 1), 12, '0'))::uuid,
      ('01900000-0000-7000-8000-' || lpad(to_hex(2 * i), 12, '0'))::uuid,
      '+1' || 300 + i / {per_code} || 5550000 + i % {per_code}, 'number ' || i, now(), now()
    FROM (SELECT *, row_number() OVER (ORDER BY id) - 1 AS k FROM api_key) AS owner
    JOIN generate_series(1, {numbers} - 1, 2) AS i ON i / 2 % 2 = k;
    UPDATE phone_number SET assignment_id = assignment.id FROM assignment WHERE assignment.number = phone_number.number;

    INSERT INTO hold (organization_id, id, api_key_id, request_id, numbers, created_at, expires_at)
    SELECT organization_id, gen_random_uuid(), id, '', ARRAY['+13005550000'], now() - interval '1 day',
      now() - interval '1 hour'
    FROM api_key, generate_series(1, 5000);
    INSERT INTO number_event (number, id, kind, organization_id, created_at)
    SELECT number, gen_random_uuid(), 'routed', organization_id, now() FROM assignment LIMIT 10000;
    INSERT INTO idempotency_key (organization_id, key, fingerprint, order_id, answer, created_at)
    SELECT organization_id, id, '', id, 'x', now() FROM orders LIMIT 10000;
"""


def fill(database: Database) -> Customer:
    """Fill a new database. Return one of the two customers who have numbers there."""
    customer, _ = Customer.open(database.engine), Customer.open(database.engine)
    count = AREA_CODES * NUMBERS_PER_AREA_CODE
    with database.engine.begin() as connection:
        connection.execute(text(FILL.format(numbers=count, per_code=NUMBERS_PER_AREA_CODE).replace(":", r"\:")))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    return customer


def plan_of(database: Database, statement: Statement, bound: BoundStatement, *, run: bool = False) -> dict[str, Any]:
    """The plan that our connections have for a statement. With `run` it is executed, and has what it read."""
    options = sql.SQL("ANALYZE, BUFFERS, FORMAT JSON" if run else "FORMAT JSON")
    parameters = sql.SQL(", ").join(sql.Literal(value.decode()) for value in bound.parameters)
    query = sql.SQL("EXPLAIN ({}) EXECUTE {} ({})").format(options, sql.Identifier(statement.name.decode()), parameters)

    async def explain() -> Any:
        connection = await connect(database.url, Settings(), [statement])
        try:
            return await (await connection._connection.execute(query)).fetchone()
        finally:
            await connection.close()

    ((found,),) = asyncio.run(explain())
    return dict((found if isinstance(found, dict) else json.loads(found) if isinstance(found, str) else found)["Plan"])


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes of a plan."""
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


def indexes(plan: dict[str, Any]) -> set[str]:
    """The indexes that a plan uses."""
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def tables_read_whole(plan: dict[str, Any]) -> set[str]:
    return {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"}


def pages_read(plan: dict[str, Any]) -> int:
    """How many pages the execution of a plan touched, in the cache or not."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
