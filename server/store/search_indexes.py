"""The indexes for searches. They are built without blocking orders, so not in the transaction of a migration.

Without them searches give the same results, but may be slow.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.errors import InsufficientPrivilege, LockNotAvailable, UndefinedFile
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from server.errors import OperatorError
from server.store import advisory_locks, indexes

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5
LOCK_SECONDS_MAX = 60.0
"""How long a build waits for another build, or for a transaction that is older than it."""

SEARCH = ("phone_number_search", "phone_number USING btree (number_type, sms_enabled, mms_enabled, number)")
DIGITS = ("phone_number_digits", "phone_number USING gin (number gin_trgm_ops)")
EXTENSION = "pg_trgm"

IN_USE = (
    f"the search indexes could not be built, because other transactions ran for {LOCK_SECONDS_MAX:.0f} s: run "
    "`ordernumbers db upgrade` again after the oldest transaction in pg_stat_activity has ended"
)
NO_EXTENSION = (
    "searches for a pattern of digits will be slow: the extension pg_trgm cannot be used here (%s). "
    "Let an administrator run `CREATE EXTENSION pg_trgm` in a schema of the search_path, "
    "then run `ordernumbers db upgrade` again"
)


def build(engine: Engine) -> None:
    """Build the indexes that are missing. Raises OperatorError if other transactions are in the way for too long."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, _alone(connection):
        connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS_MAX:.0f}s'"))
        try:
            indexes.build(connection, *SEARCH)
            if _has_extension(connection):
                indexes.build(connection, *DIGITS)
        except DBAPIError as error:
            if isinstance(error.orig, LockNotAvailable):
                raise OperatorError(IN_USE) from None
            raise


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Wait until no other build runs."""
    deadline = time.monotonic() + LOCK_SECONDS_MAX
    # Not pg_advisory_lock: a build waits for every older statement, so also for one that waits for this lock.
    while not connection.execute(text(f"SELECT pg_try_advisory_lock({advisory_locks.SEARCH_INDEXES})")).scalar_one():
        if time.monotonic() > deadline:
            raise OperatorError(IN_USE)
        time.sleep(PAUSE_SECONDS)
    try:
        yield
    finally:
        connection.execute(text(f"SELECT pg_advisory_unlock({advisory_locks.SEARCH_INDEXES})"))


def _has_extension(connection: Connection) -> bool:
    try:
        connection.execute(text(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION}"))
    except DBAPIError as error:
        if not isinstance(error.orig, InsufficientPrivilege | UndefinedFile):
            raise
        log.warning(NO_EXTENSION, " ".join(str(error.orig).split()))
        return False
    # It may have been created in a schema that is not in our search_path.
    visible = "SELECT EXISTS (SELECT FROM pg_opclass WHERE opcname = 'gin_trgm_ops' AND pg_opclass_is_visible(oid))"
    if connection.execute(text(visible)).scalar_one():
        return True
    log.warning(NO_EXTENSION, "it is in a schema outside search_path")
    return False
