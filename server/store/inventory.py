"""The inventory: importing numbers from CSV, and counting them.

An import first checks every row, in a temporary table and without any lock. Then it writes the numbers in short
transactions of `WRITE_ROWS` rows. Both imports and orders lock numbers in ascending order, so they cannot deadlock.
Each transaction also writes the history: the time of an import, and each change of a number as an event.

An import that is killed while it writes has committed some of these transactions. If it runs again, it finds their rows
unchanged and writes the others.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, cast
from uuid import UUID

import psycopg
from phonenumbers import (
    NumberParseException,
    PhoneNumberFormat,
    format_number,
    is_possible_number,
    is_possible_short_number,
    parse,
)
from sqlalchemy import Connection, Engine, and_, func, not_, or_, select, text
from uuid_utils.compat import uuid7

from server.errors import OperatorError
from server.money import parse_amount
from server.store.engine import execute_alone
from server.store.tables import NUMBER_TYPES, is_available, phone_number

COLUMNS = ("number", "number_type", "sms_enabled", "mms_enabled", "price")
BAD_ROWS_SHOWN_MAX = 100
STAGE_ROWS = 10_000
WRITE_ROWS = 2000

_E164 = re.compile(r"\+[1-9][0-9]{1,14}")
_BOOLEANS = {"true": True, "false": False}

Progress = Callable[[str, int, int | None], None]
"""Called with the current step, the count of rows done, and the count of all rows if known."""


class BadRow(NamedTuple):
    """A row that cannot be imported: the line where it ends, and what is wrong with it."""

    line: int
    reason: str


class Imported(NamedTuple):
    """What an import did. `bad_count` counts all bad rows, and `bad` has the first `BAD_ROWS_SHOWN_MAX` of them."""

    added: int
    updated: int
    unchanged: int
    bad_count: int
    bad: list[BadRow]


class CheckedRow(NamedTuple):
    """A correct row, as the temporary table stores it."""

    line: int
    number: str
    number_type: str
    sms_enabled: bool
    mms_enabled: bool
    price_micros: int


def import_csv(
    engine: Engine, lines: Iterable[str], *, skip_bad: bool = False, progress: Progress = lambda *_: None
) -> Imported:
    """Add the numbers of a CSV file. For numbers that exist, update type, capabilities and price, but never the owner.

    The first line names the columns, in any order. If any row is bad, nothing is imported, unless `skip_bad` is set.
    Raises OperatorError if the file is not CSV with these columns.
    """
    # Autocommit, because VACUUM cannot run in a transaction, and because each write is a transaction of its own.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        bad_count, bad = _stage(connection, _rows(lines), progress)
        if bad_count and not skip_bad:
            return Imported(0, 0, 0, bad_count, bad)
        added, updated, unchanged = _write(connection, progress)
        return Imported(added, updated, unchanged, bad_count, bad)


def stats(connection: Connection) -> dict[str, dict[str, int]]:
    """Count the numbers of each type that are available, assigned, held and resting.

    A resting number that its former owner holds as well counts as resting.
    """
    n = phone_number.c
    available, assigned = is_available(), n.assignment_id.is_not(None)
    rests = func.coalesce(n.rest_until > func.clock_timestamp(), False)
    kept = not_(or_(available, assigned))
    states = {
        "available": available,
        "assigned": assigned,
        "held": and_(kept, not_(rests)),
        "resting": and_(kept, rests),
    }
    query = select(n.number_type, *(func.count().filter(is_so).label(state) for state, is_so in states.items()))
    counted = connection.execute(query.group_by(n.number_type))
    # A type without numbers has no row in the result.
    counts = {number_type: dict.fromkeys(states, 0) for number_type in NUMBER_TYPES}
    return counts | {row.pop("number_type"): row for row in map(dict, counted.mappings())}


def _rows(lines: Iterable[str]) -> Iterator[CheckedRow | BadRow]:
    """Read and check each row of the file."""
    reader = csv.reader(lines, strict=True)
    try:
        positions = _positions(next(reader, []))
        for fields in reader:
            if fields:  # an empty line is no row
                yield _checked(reader.line_num, fields, positions)
    except csv.Error as error:
        raise OperatorError(f"line {reader.line_num} is not valid CSV: {error}") from None
    except UnicodeDecodeError:
        raise OperatorError(f"the file is not valid UTF-8 after line {reader.line_num}") from None


def _positions(header: list[str]) -> list[int]:
    if sorted(header) != sorted(COLUMNS):
        found = ",".join(header) or "empty"
        raise OperatorError(f"the first line must name the columns {','.join(COLUMNS)}, but it is {found}")
    return [header.index(column) for column in COLUMNS]


def _checked(line: int, fields: list[str], positions: list[int]) -> CheckedRow | BadRow:
    try:
        if len(fields) != len(COLUMNS):
            raise OperatorError(f"{len(fields)} fields instead of {len(COLUMNS)}")
        number, number_type, sms, mms, price = (fields[position] for position in positions)
        if number_type not in NUMBER_TYPES:
            raise OperatorError(f"number_type {number_type!r} is not one of {', '.join(NUMBER_TYPES)}")
        _check_number(number, number_type)
        sms_enabled, mms_enabled = _boolean("sms_enabled", sms), _boolean("mms_enabled", mms)
        return CheckedRow(line, number, number_type, sms_enabled, mms_enabled, _price_micros(price))
    except OperatorError as error:
        return BadRow(line, str(error))


def _check_number(number: str, number_type: str) -> None:
    """Raise OperatorError unless the number is in canonical E.164 form and possible in its country."""
    if not _E164.fullmatch(number):
        raise OperatorError(f"number {number!r} is not E.164")
    try:
        parsed = parse(number)
    except NumberParseException:
        raise OperatorError(f"number {number} has an unknown country code") from None
    if (canonical := format_number(parsed, PhoneNumberFormat.E164)) != number:
        raise OperatorError(f"number {number} must be written {canonical}")
    # Not is_valid_number: it refuses the number ranges that are reserved for tests.
    # Short codes are too short for is_possible_number.
    short = number_type == "short_code" and is_possible_short_number(parsed)
    if not short and not is_possible_number(parsed):
        raise OperatorError(f"number {number} is not a possible number")


def _boolean(column: str, value: str) -> bool:
    if value not in _BOOLEANS:
        raise OperatorError(f"{column} must be true or false, not {value!r}")
    return _BOOLEANS[value]


def _price_micros(price: str) -> int:
    try:
        micros = parse_amount(price)
    except OperatorError as error:
        raise OperatorError(f"price {error}") from None
    if price.startswith("-"):
        raise OperatorError(f"price {price} is negative")
    return micros


def _stage(connection: Connection, rows: Iterator[CheckedRow | BadRow], progress: Progress) -> tuple[int, list[BadRow]]:
    """Copy the correct rows into the temporary table `import_row`. Return the count of bad rows, and the first ones."""
    connection.execute(text(STAGE))
    bad: list[BadRow] = []
    bad_count = read = 0
    while chunk := list(islice(rows, STAGE_ROWS)):
        bad_here = [row for row in chunk if isinstance(row, BadRow)]
        _copy(connection, [row for row in chunk if isinstance(row, CheckedRow)])
        bad_count += len(bad_here)
        bad += bad_here[: BAD_ROWS_SHOWN_MAX - len(bad)]
        read += len(chunk)
        progress("checking rows", read, None)
    connection.execute(text("CREATE INDEX ON import_row (number, line)"))
    connection.execute(text("VACUUM ANALYZE import_row"))  # allows index-only scans
    # From here each statement reads a few rows of a large table by key, so an index nested loop is always right.
    for plan in ("seqscan", "hashjoin", "mergejoin"):
        connection.execute(text(f"SET enable_{plan} = off"))
    duplicates = connection.execute(text(DUPLICATES), {"rows": BAD_ROWS_SHOWN_MAX}).all()
    bad_count += duplicates[0].total if duplicates else 0
    bad += [BadRow(row.line, f"number {row.number} is already on line {row.first_line}") for row in duplicates]
    return bad_count, sorted(bad)[:BAD_ROWS_SHOWN_MAX]


def _copy(connection: Connection, rows: list[CheckedRow]) -> None:
    # One COPY per chunk, because a long COPY keeps its snapshot open. Vacuum cannot remove rows that a snapshot sees.
    driver = cast(psycopg.Connection, connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy("COPY import_row FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _write(connection: Connection, progress: Progress) -> tuple[int, int, int]:
    """Write the staged rows to the inventory. Return how many were added, updated, and unchanged."""
    total: int = connection.execute(text("SELECT count(DISTINCT number) FROM import_row")).scalar_one()
    added = updated = done = 0
    after: str | None = ""
    event_id = uuid7()
    while (chunk := _write_chunk(connection, after, event_id)).last is not None:
        added, updated = added + chunk.added, updated + chunk.updated
        if chunk.added < chunk.new:  # another import has added the others meanwhile, so they are in the inventory now
            event_id = uuid7()
            continue
        after, done = chunk.last, done + chunk.rows
        progress("writing", done, total)
    if added or updated:
        connection.execute(text("ANALYZE phone_number"))  # the planner must know if the table is large now
    return added, updated, total - added - updated


def _write_chunk(connection: Connection, after: str | None, event_id: UUID) -> Any:
    return execute_alone(connection, WRITE, {"after": after, "rows": WRITE_ROWS, "event_id": event_id}).one()


STAGE = """
    CREATE TEMPORARY TABLE import_row (
      line         bigint NOT NULL,
      number       text COLLATE "C" NOT NULL,
      number_type  text NOT NULL,
      sms_enabled  boolean NOT NULL,
      mms_enabled  boolean NOT NULL,
      price_micros bigint NOT NULL
    )
"""

DUPLICATES = """
    SELECT line, number, first_line, count(*) OVER () AS total
    FROM (
      SELECT line, number, first_value(line) OVER (PARTITION BY number ORDER BY line) AS first_line
      FROM import_row
    ) staged
    WHERE line <> first_line
    ORDER BY line
    LIMIT :rows
"""

# Unchanged rows are not even locked. If the file has a number twice, its first line counts.
# `change` has the values that the locked rows have, also if another import has just changed them. All of them are
# locked before the first new number is added.
WRITE = """
    WITH chunk AS MATERIALIZED (
      SELECT DISTINCT ON (number) number, number_type, sms_enabled, mms_enabled, price_micros
      FROM import_row
      WHERE number > :after
      ORDER BY number, line
      LIMIT :rows
    ),
    change AS MATERIALIZED (
      SELECT chunk.*,
        p.number_type AS old_number_type,
        p.sms_enabled AS old_sms_enabled,
        p.mms_enabled AS old_mms_enabled,
        p.price_micros AS old_price_micros
      FROM chunk JOIN phone_number p USING (number)
      WHERE (p.number_type, p.sms_enabled, p.mms_enabled, p.price_micros)
        IS DISTINCT FROM (chunk.number_type, chunk.sms_enabled, chunk.mms_enabled, chunk.price_micros)
      ORDER BY p.number
      FOR NO KEY UPDATE OF p
    ),
    new AS MATERIALIZED (
      SELECT * FROM chunk WHERE NOT EXISTS (SELECT FROM phone_number p WHERE p.number = chunk.number)
    ),
    updated AS (
      UPDATE phone_number p SET
        number_type = change.number_type,
        sms_enabled = change.sms_enabled,
        mms_enabled = change.mms_enabled,
        price_micros = change.price_micros
      FROM change
      WHERE p.number = change.number
    ),
    events AS (
      INSERT INTO number_event (number, id, kind, before, after, created_at)
      SELECT number, :event_id, 'changed', jsonb_object_agg(property, old), jsonb_object_agg(property, new),
        clock_timestamp()
      FROM change CROSS JOIN LATERAL (
        VALUES
          ('number_type', to_jsonb(old_number_type), to_jsonb(number_type)),
          ('sms_enabled', to_jsonb(old_sms_enabled), to_jsonb(sms_enabled)),
          ('mms_enabled', to_jsonb(old_mms_enabled), to_jsonb(mms_enabled)),
          ('price_micros', to_jsonb(old_price_micros), to_jsonb(price_micros))
      ) AS each (property, old, new)
      WHERE old <> new
      GROUP BY number
    ),
    added AS (
      INSERT INTO phone_number (number, number_type, sms_enabled, mms_enabled, price_micros, imported_at)
      SELECT number, number_type, sms_enabled, mms_enabled, price_micros, clock_timestamp()
      FROM new
      WHERE (SELECT count(*) FROM change) >= 0
      ORDER BY number
      ON CONFLICT (number) DO NOTHING
      RETURNING number
    )
    SELECT
      (SELECT max(number) FROM chunk) AS last,
      (SELECT count(*) FROM chunk) AS rows,
      (SELECT count(*) FROM new) AS new,
      (SELECT count(*) FROM added) AS added,
      (SELECT count(*) FROM change) AS updated
"""
