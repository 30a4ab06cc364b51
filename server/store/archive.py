"""Moves old rows from the database to a file: ledger entries, ended holds, and orders whose numbers were given back.

Each step is a short transaction. It deletes rows, writes them to the file, waits until they are on disk, and commits.
So every row is in the file or in the database. After a crash some are in both, and the next archive moves them again.

What is moved does not change any more, and no call locks it. So no order waits for a step. These rows stay:

- The newest ledger entry of each organization. The table `archive` has the balance before the first one that stays.
- A ledger entry that does not follow from the one before it, and all after it. The check shall still find that.
- An order with a number that its organization has, or whose rest ended later.
- An order whose ledger entry stays, or whose response may still be stored under an idempotency key.
- A hold that the row of a number still names.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from server.errors import OperatorError
from server.store import advisory_locks, indexes
from server.store import archive_statements as sql
from server.store.archive_file import ArchiveFile

log = logging.getLogger(__name__)

AGE_MIN = timedelta(days=90)
"""Younger rows are not archived. No call is under way for so long."""
STEP_ROWS = 500
"""The ledger entries, holds or orders that a step looks at. It ends earlier after as many numbers of them."""
PAUSE_PER_STEP = 4.0
"""The pause after a step, as a multiple of the step's time. So an archive uses a fifth of one connection."""
LOCK_SECONDS_MAX = 60
"""How long the build of an index waits for older transactions."""

# PostgreSQL looks for the assignments and the ledger entry of each order that is deleted. An index for that would make
# every order slower. So there is one only while orders are archived.
INDEXES = (
    ("archive_assignment_order", "assignment USING btree (order_id)"),
    ("archive_ledger_entry_order", "ledger_entry USING btree (order_id)"),
)
IN_USE = (
    "not all was archived, because another transaction was in the way for too long: "
    "run it again after the oldest transaction in pg_stat_activity has ended"
)

TABLES = ("orders", "assignment", "ledger_entry", "hold", "number_event")

Counts = dict[str, int]
"""The count of rows by table."""
Progress = Callable[[str, int, int | None], None]
"""Called with what is done, the count of rows done, and None."""
T = TypeVar("T")


class Old(NamedTuple):
    """What is old. Orders have a time of their own, because the response of an old one may still be stored."""

    before: datetime
    orders_before: datetime


class Entries(NamedTuple):
    """Ledger entries that follow each other: how many, the number and the balance of the last, the latest creation."""

    size: int
    entry_no: int
    balance_micros: int
    until: datetime | None


NO_ENTRIES = Entries(0, 0, 0, None)


def archive(engine: Engine, before: datetime, path: Path, progress: Progress = lambda *_: None) -> Counts:
    """Move what is older than `before` to the new file `path`. Return how many rows of each table were moved.

    Raises OperatorError if `before` is too young, the file cannot be written, or another archive runs.
    """
    with _autocommit(engine) as beside, engine.connect() as connection:
        old = _old(beside, before)
        with connection.begin():  # the lock is the session's: without it there are no steps
            _set(connection, SESSION)
            is_alone = connection.execute(text(f"SELECT pg_try_advisory_lock({advisory_locks.ARCHIVE})")).scalar_one()
        if not is_alone:
            raise OperatorError("another archive of this database is running")
        with ArchiveFile(path) as file, _indexes_removed(beside):
            steps = Steps(connection, old, file, progress)
            organizations = _organizations(beside)
            for organization_id in organizations:
                steps.archive_ledger(organization_id)
                steps.archive_holds(organization_id)
            with_old_orders = [each for each in organizations if _has_old_orders(beside, each, old)]
            if with_old_orders:
                _build_indexes(beside)
            for organization_id in with_old_orders:
                steps.archive_orders(organization_id)
        return steps.counts


def count(engine: Engine, before: datetime) -> Counts:
    """Count what `archive` would move, without the events. It only reads, so it may run on a standby.

    It reads the orders of an organization in one statement, which takes minutes for many millions.
    """
    counts: Counts = {"orders": 0, "assignment": 0, "ledger_entry": 0, "hold": 0}
    with _autocommit(engine) as connection:
        old = _old(connection, before)
        for organization_id in _organizations(connection):
            last = _archived_entries(connection, organization_id)
            while (entries := _next_entries(connection, organization_id, old, last)).size:
                counts["ledger_entry"] += entries.size
                last = entries
            named = {"organization_id": organization_id, **old._asdict(), **last._asdict()}
            for table, query in sql.COUNTS:
                counts[table] += connection.execute(text(query), named).scalar_one()
    return counts


class Steps:
    """The steps of an archive. Each is one transaction, with a pause after it."""

    def __init__(self, connection: Connection, old: Old, file: ArchiveFile, progress: Progress) -> None:
        self.counts: Counts = dict.fromkeys(TABLES, 0)
        self._connection = connection
        self._old = old
        self._file = file
        self._progress = progress

    def archive_ledger(self, organization_id: UUID) -> None:
        """Move the oldest ledger entries, in their order."""
        with self._connection.begin():
            archived = _archived_entries(self._connection, organization_id)
        self._run(partial(self._archive_entries, organization_id), archived)

    def archive_holds(self, organization_id: UUID) -> None:
        """Move the holds that have ended, with their events."""
        self._run(partial(self._archive_holds, organization_id), ("-infinity", UUID(int=0)))

    def archive_orders(self, organization_id: UUID) -> None:
        """Move orders with their assignments, and with the events of these."""
        with self._connection.begin():
            archived = _archived_entries(self._connection, organization_id)
        self._run(partial(self._archive_orders, organization_id, archived), UUID(int=0))

    def _run(self, step: Callable[[T], T | None], start: T) -> None:
        """Repeat the step. Each takes what the one before it has returned. The last one returns None."""
        after: T | None = start
        while after is not None:
            started = time.monotonic()
            with self._connection.begin():
                after = step(after)
            self._progress("archiving", sum(self.counts.values()), None)
            time.sleep(PAUSE_PER_STEP * (time.monotonic() - started))

    def _archive_entries(self, organization_id: UUID, after: Entries) -> Entries | None:
        entries = _next_entries(self._connection, organization_id, self._old, after)
        if not entries.size:
            return None
        named = {"organization_id": organization_id, "after": after.entry_no, "upto": entries.entry_no}
        self._move(named, sql.DELETE_ENTRIES, entries)
        return entries

    def _archive_holds(self, organization_id: UUID, after: tuple[str, UUID]) -> tuple[str, UUID] | None:
        named = {"organization_id": organization_id, "before": self._old.before, "rows": STEP_ROWS}
        page = self._connection.execute(text(sql.HOLDS), {**named, "expires_at": after[0], "id": after[1]}).all()
        self._move_some(organization_id, [row.id for row in page if row.may_go], sql.DELETE_HOLDS)
        return (page[-1].expires_at, page[-1].id) if page else None

    def _archive_orders(self, organization_id: UUID, archived: Entries, after: UUID) -> UUID | None:
        named = {"organization_id": organization_id, "after": after, "rows": STEP_ROWS}
        page = self._connection.execute(text(sql.ORDERS), {**self._old._asdict(), **archived._asdict(), **named}).all()
        self._move_some(organization_id, [row.id for row in page if row.may_go], sql.DELETE_ORDERS)
        # The ids are UUIDv7, so they are in the order of time.
        return page[-1].id if any(row.is_old for row in page) else None

    def _move_some(self, organization_id: UUID, ids: list[UUID], deletes: tuple[sql.Delete, ...]) -> None:
        if ids:
            self._move({"organization_id": organization_id, "ids": ids}, deletes)

    def _move(self, named: dict[str, Any], deletes: tuple[sql.Delete, ...], entries: Entries = NO_ENTRIES) -> None:
        """Delete rows, and write them to the file."""
        lines: list[str] = []
        for table, statement in deletes:
            rows = self._connection.execute(text(statement), named).scalars().all()
            lines += (f'{{"table": "{table}", "row": {row}}}' for row in rows)
            self.counts[table] += len(rows)
        mark = {"organization_id": named["organization_id"], "before": self._old.before, **entries._asdict()}
        self._connection.execute(text(sql.MARK), mark)
        self._file.write(lines)


def _old(connection: Connection, before: datetime) -> Old:
    """What is older than `before`. Raises OperatorError if that is too young."""
    found = connection.execute(text(sql.OLD), {"before": before}).one()
    if before > found.now - AGE_MIN:
        raise OperatorError(f"{before:%Y-%m-%d} is too young: it must be at least {AGE_MIN.days} days ago")
    return Old(before, found.orders_before)


def _organizations(connection: Connection) -> list[UUID]:
    return list(connection.execute(text("SELECT id FROM organization ORDER BY id")).scalars())


def _archived_entries(connection: Connection, organization_id: UUID) -> Entries:
    """All ledger entries that are archived."""
    row = connection.execute(text(sql.ARCHIVED_ENTRIES), {"organization_id": organization_id}).one_or_none()
    return NO_ENTRIES if row is None else Entries(*row)


def _next_entries(connection: Connection, organization_id: UUID, old: Old, after: Entries) -> Entries:
    """The ledger entries after those that can be archived in one step."""
    named = {"organization_id": organization_id, "before": old.before, "rows": STEP_ROWS}
    return Entries(*connection.execute(text(sql.ENTRIES), {**after._asdict(), **named}).one())


def _has_old_orders(connection: Connection, organization_id: UUID, old: Old) -> bool:
    first = connection.execute(text(sql.FIRST_ORDER), {"organization_id": organization_id}).scalar_one_or_none()
    return first is not None and first < old.orders_before


@contextmanager
def _indexes_removed(connection: Connection) -> Iterator[None]:
    """Remove the indexes at the end, also those of an archive that was killed."""
    _set(connection, [f"lock_timeout = '{LOCK_SECONDS_MAX}s'"])
    try:
        yield
    except DBAPIError as error:
        if isinstance(error.orig, LockNotAvailable):
            raise OperatorError(IN_USE) from None
        raise
    finally:
        for name, _ in INDEXES:
            _drop(connection, name)


def _drop(connection: Connection, name: str) -> None:
    try:
        indexes.drop(connection, name)
    except DBAPIError as error:
        # It does no harm, and the result of the archive must still be told.
        log.warning("the index %s stays until the next archive: %s", name, error.orig)


def _build_indexes(connection: Connection) -> None:
    for index in INDEXES:
        indexes.build(connection, *index)
    # So that the planner knows how few rows have the same order_id.
    for table in ("assignment", "ledger_entry"):
        connection.execute(text(f"ANALYZE {table} (organization_id, order_id)"))


@contextmanager
def _autocommit(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        _set(connection, BASIC)
        yield connection


def _set(connection: Connection, settings: Iterable[str]) -> None:
    for setting in settings:
        connection.execute(text(f"SET {setting}"))


BASIC = (
    # No other transaction changes what is old. So this level is enough, whatever the settings have.
    "default_transaction_isolation = 'read committed'",
    # The database or the user may have others. A build takes minutes, and the session that does it is idle before.
    "statement_timeout = 0",
    "idle_session_timeout = 0",
)
SESSION = (
    *BASIC,
    # Each statement reads a few rows of a large table by key, so index nested loops are always right.
    *(f"enable_{plan} = off" for plan in ("seqscan", "bitmapscan", "material", "hashjoin", "mergejoin")),
    # A deletion that a crash undoes is harmless: the rows are then in the file and in the database.
    "synchronous_commit = off",
    "lock_timeout = '5s'",
    "idle_in_transaction_session_timeout = '60s'",
)
