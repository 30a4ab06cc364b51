"""The inventory: importing numbers from CSV, and counting them.

An import checks every row first, in a temporary table and without a lock on anything. Only then it writes, in short
transactions of `WRITE_ROWS` numbers, always upwards, as orders lock them. One that is killed while writing leaves whole
transactions behind and no harm: run again, it finds those rows done and writes the rest.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, cast

import psycopg
from phonenumbers import (
    NumberParseException,
    PhoneNumberFormat,
    format_number,
    is_possible_number,
    is_possible_short_number,
    parse,
)
from sqlalchemy import Connection, Engine, text

from server.errors import OperatorError
from server.money import parse_amount
from server.store.engine import again
from server.store.tables import NUMBER_TYPES

COLUMNS = ("number", "number_type", "sms_enabled", "mms_enabled", "price")
BAD_ROWS_SHOWN_MAX = 100
STAGE_ROWS = 10_000
WRITE_ROWS = 2000

_E164 = re.compile(r"\+[1-9][0-9]{1,14}")
_BOOLEANS = {"true": True, "false": False}

Progress = Callable[[str, int, int | None], None]
"""Told what is going on, how many rows of it are done, and of how many if that is known."""


class BadRow(NamedTuple):
    """A row that cannot be imported: the line it ends on, and what is wrong with it."""

    line: int
    reason: str


class Imported(NamedTuple):
    """What an import did. Of the bad rows the first `BAD_ROWS_SHOWN_MAX` are here, and all are counted."""

    added: int
    updated: int
    unchanged: int
    bad_count: int
    bad: list[BadRow]


class Row(NamedTuple):
    """A row as it is staged."""

    line: int
    number: str
    number_type: str
    sms_enabled: bool
    mms_enabled: bool
    price_micros: int


def import_csv(
    engine: Engine, lines: Iterable[str], *, skip_bad: bool = False, progress: Progress = lambda *_: None
) -> Imported:
    """Add the numbers of a CSV file; where one is already there, update type, capabilities and price, never its owner.

    The first line names the columns, in any order. If any row is bad nothing is imported, unless `skip_bad`. Raises
    OperatorError for what is not such a file at all.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        bad_count, bad = _stage(connection, _rows(lines), progress)
        if bad_count and not skip_bad:
            return Imported(0, 0, 0, bad_count, bad)
        added, updated, unchanged = _write(connection, progress)
        return Imported(added, updated, unchanged, bad_count, bad)


def stats(connection: Connection) -> dict[str, dict[str, int]]:
    """How many numbers of each type are available, assigned, and quarantined: not yet free for everyone."""
    counted = connection.execute(text(STATS))
    counts = {number_type: {"available": 0, "assigned": 0, "quarantined": 0} for number_type in NUMBER_TYPES}
    return counts | {row.pop("number_type"): row for row in map(dict, counted.mappings())}


def _rows(lines: Iterable[str]) -> Iterator[Row | BadRow]:
    """Each row of the file, checked."""
    reader = csv.reader(lines, strict=True)
    try:
        positions = _positions(next(reader, []))
        for fields in reader:
            if fields:
                yield _checked(reader.line_num, fields, positions)
    except csv.Error as error:
        raise OperatorError(f"line {reader.line_num} is not CSV: {error}") from None
    except UnicodeDecodeError:
        raise OperatorError(f"the file is not UTF-8, somewhere after line {reader.line_num}") from None


def _positions(header: list[str]) -> list[int]:
    if sorted(header) != sorted(COLUMNS):
        found = f"says {','.join(header)}" if header else "is missing"
        raise OperatorError(f"the first line must name the columns {','.join(COLUMNS)}, and it {found}")
    return [header.index(column) for column in COLUMNS]


def _checked(line: int, fields: list[str], positions: list[int]) -> Row | BadRow:
    try:
        if len(fields) != len(COLUMNS):
            raise OperatorError(f"{len(fields)} fields instead of {len(COLUMNS)}")
        number, number_type, sms, mms, price = (fields[position] for position in positions)
        if number_type not in NUMBER_TYPES:
            raise OperatorError(f"number_type {number_type!r} is not one of {', '.join(NUMBER_TYPES)}")
        _check_number(number, number_type)
        sms_enabled, mms_enabled = _boolean("sms_enabled", sms), _boolean("mms_enabled", mms)
        return Row(line, number, number_type, sms_enabled, mms_enabled, _price_micros(price))
    except OperatorError as error:
        return BadRow(line, str(error))


def _check_number(number: str, number_type: str) -> None:
    """Refuse a number unless it is E.164, written canonically, and possible where it belongs.

    Whether it is in use (`is_valid_number`) is not asked: that refuses ranges kept for tests.
    """
    if not _E164.fullmatch(number):
        raise OperatorError(f"number {number!r} is not E.164")
    try:
        parsed = parse(number)
    except NumberParseException:
        raise OperatorError(f"number {number} has no known country code") from None
    if format_number(parsed, PhoneNumberFormat.E164) != number:
        raise OperatorError(f"number {number} is written {format_number(parsed, PhoneNumberFormat.E164)}")
    # Short codes are too short for anything else, so they have rules of their own.
    short = number_type == "short_code" and is_possible_short_number(parsed)
    if not short and not is_possible_number(parsed):
        raise OperatorError(f"number {number} is not a possible number")


def _boolean(column: str, value: str) -> bool:
    if value not in _BOOLEANS:
        raise OperatorError(f"{column} {value!r} is neither true nor false")
    return _BOOLEANS[value]


def _price_micros(price: str) -> int:
    try:
        micros = parse_amount(price)
    except OperatorError as error:
        raise OperatorError(f"price {error}") from None
    if price.startswith("-"):
        raise OperatorError(f"price {price} is negative")
    return micros


def _stage(connection: Connection, rows: Iterator[Row | BadRow], progress: Progress) -> tuple[int, list[BadRow]]:
    """Put the good rows into the temporary table `import_row`; count the bad ones and return the first."""
    connection.execute(text(STAGE))
    bad: list[BadRow] = []
    bad_count = read = 0
    while portion := list(islice(rows, STAGE_ROWS)):
        wrong = [row for row in portion if isinstance(row, BadRow)]
        _copy(connection, [row for row in portion if isinstance(row, Row)])
        bad_count += len(wrong)
        bad += wrong[: BAD_ROWS_SHOWN_MAX - len(bad)]
        read += len(portion)
        progress("checking rows", read, None)
    connection.execute(text("CREATE INDEX ON import_row (number, line)"))
    connection.execute(text("VACUUM ANALYZE import_row"))  # so that the index alone answers
    # Now a statement looks up few rows of perhaps very many: by index, whatever was known when it was planned.
    for way in ("seqscan", "hashjoin", "mergejoin"):
        connection.execute(text(f"SET enable_{way} = off"))
    repeated = connection.execute(text(REPEATED), {"rows": BAD_ROWS_SHOWN_MAX}).all()
    bad_count += repeated[0].total if repeated else 0
    bad += [BadRow(row.line, f"number {row.number} is already on line {row.first_line}") for row in repeated]
    return bad_count, sorted(bad)[:BAD_ROWS_SHOWN_MAX]


def _copy(connection: Connection, rows: list[Row]) -> None:
    """One COPY a portion: a COPY is one statement, and a long one would keep one snapshot open all the while."""
    driver = cast(psycopg.Connection, connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy("COPY import_row FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _write(connection: Connection, progress: Progress) -> tuple[int, int, int]:
    """Bring the staged rows into the inventory: how many were added, updated, and found as they are."""
    total: int = connection.execute(text("SELECT count(DISTINCT number) FROM import_row")).scalar_one()
    added = updated = done = 0
    after: str | None = ""
    while (portion := again(partial(_write_portion, connection, after))).last is not None:
        after = portion.last
        added, updated, done = added + portion.added, updated + portion.updated, done + portion.rows
        progress("writing", done, total)
    if added or updated:
        connection.execute(text("ANALYZE phone_number"))  # plans made for a small table are bad for a large one
    return added, updated, total - added - updated


def _write_portion(connection: Connection, after: str | None) -> Any:
    return connection.execute(text(WRITE), {"after": after, "rows": WRITE_ROWS}).one()


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

REPEATED = """
    SELECT line, number, first_line, count(*) OVER () AS total
    FROM (
      SELECT line, number, first_value(line) OVER (PARTITION BY number ORDER BY line) AS first_line
      FROM import_row
    ) staged
    WHERE line <> first_line
    ORDER BY line
    LIMIT :rows
"""

# Rows that are already as they should be are not even locked. In a file that repeats a number its first line counts.
WRITE = """
    WITH portion AS MATERIALIZED (
      SELECT DISTINCT ON (number) number, number_type, sms_enabled, mms_enabled, price_micros
      FROM import_row
      WHERE number > :after
      ORDER BY number, line
      LIMIT :rows
    ),
    change AS MATERIALIZED (
      SELECT portion.*, p.number IS NULL AS is_new
      FROM portion LEFT JOIN phone_number p USING (number)
      WHERE (p.number_type, p.sms_enabled, p.mms_enabled, p.price_micros)
        IS DISTINCT FROM (portion.number_type, portion.sms_enabled, portion.mms_enabled, portion.price_micros)
    ),
    written AS (
      INSERT INTO phone_number (number, number_type, sms_enabled, mms_enabled, price_micros)
      SELECT number, number_type, sms_enabled, mms_enabled, price_micros
      FROM change
      ORDER BY number
      ON CONFLICT (number) DO UPDATE SET
        number_type = excluded.number_type,
        sms_enabled = excluded.sms_enabled,
        mms_enabled = excluded.mms_enabled,
        price_micros = excluded.price_micros
    )
    SELECT
      (SELECT max(number) FROM portion) AS last,
      (SELECT count(*) FROM portion) AS rows,
      (SELECT count(*) FROM change WHERE is_new) AS added,
      (SELECT count(*) FROM change WHERE NOT is_new) AS updated
"""

STATS = """
    SELECT number_type,
      count(*) FILTER (WHERE assignment_id IS NULL AND (free_at IS NULL OR free_at <= clock_timestamp())) AS available,
      count(*) FILTER (WHERE assignment_id IS NOT NULL) AS assigned,
      count(*) FILTER (WHERE assignment_id IS NULL AND free_at > clock_timestamp()) AS quarantined
    FROM phone_number
    GROUP BY number_type
"""
