"""Brings a database to the newest schema with Alembic. The migrations are in versions/.

docs/upgrades.md lists which versions of the program run on which versions of the schema.
"""

import time
from pathlib import Path
from typing import cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from server.errors import OperatorError
from server.store import advisory_locks, search_indexes
from server.store.conflicts import CONFLICTS

UPGRADE_LOCK_TIMEOUT_MS = 300
"""How long an upgrade waits for a table. Orders that need the same table wait behind it as long."""
PAUSE_SECONDS = 1.0
"""The pause between two tries. Orders can run in it."""
UPGRADE_SECONDS_MAX = 60.0
"""How long an upgrade is retried."""

NOT_UPGRADED = "the database does not have this version's schema: run `ordernumbers db upgrade`"
TOO_NEW = (
    "the database is newer than this version of the program (its schema is {current}, this version knows schemas"
    " up to {newest}): run a newer version"
)
IN_USE = (
    f"other transactions used the tables for {UPGRADE_SECONDS_MAX:.0f} s, so nothing was changed: "
    "run it again after the oldest transaction in pg_stat_activity has ended"
)
NOT_UTF8 = (
    "the database's encoding is {encoding}, but it must be UTF8: create a database with "
    "`CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`, and set DATABASE_URL to it"
)


def newest() -> str:
    """Return the revision that this code expects."""
    return cast(str, _scripts().get_current_head())


def current(engine: Engine) -> str | None:
    """Return the revision of the database, None if it is empty."""
    with engine.connect() as connection:
        return _current(connection)


def require(engine: Engine) -> None:
    """Raise OperatorError with what to do, unless this version can run on the schema of the database."""
    with engine.connect() as connection:
        revision = _current(connection)
        if revision is None or (revision != newest() and _is_known(revision)):
            raise OperatorError(NOT_UPGRADED)
        # A newer schema names the oldest revision whose code may run on it. If we know that one, we may.
        if not _is_known(revision) and not _is_known(_oldest(connection)):
            raise OperatorError(TOO_NEW.format(current=revision, newest=newest()))


def upgrade(engine: Engine) -> None:
    """Apply all missing migrations in one transaction. Then build the indexes that searches use.

    Raises OperatorError if the database is newer than this code, is not UTF8, or is in use for too long.
    """
    deadline = time.monotonic() + UPGRADE_SECONDS_MAX
    while not _try_upgrade(engine):
        if time.monotonic() > deadline:
            raise OperatorError(IN_USE)
        time.sleep(PAUSE_SECONDS)
    search_indexes.build(engine)


def _try_upgrade(engine: Engine) -> bool:
    """Try once. False if another transaction held a lock that we need."""
    try:
        # Under its lock it must see what the upgrade before it has done, whatever level the settings have.
        with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            _upgrade(connection)
    except DBAPIError as error:
        # A deadlock is possible because other transactions may lock the tables in another order.
        if isinstance(error.orig, (LockNotAvailable, *CONFLICTS)):
            return False
        raise
    return True


def _upgrade(connection: Connection) -> None:
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise OperatorError(NOT_UTF8.format(encoding=encoding))
    # This comes first: the wait for another upgrade is limited too.
    connection.execute(text(f"SET LOCAL lock_timeout = {UPGRADE_LOCK_TIMEOUT_MS}"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": advisory_locks.UPGRADE})
    # Read under the lock: another upgrade may just have ended.
    revision = _current(connection)
    if revision is not None and not _is_known(revision):
        raise OperatorError(TOO_NEW.format(current=revision, newest=newest()))
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _is_known(revision: str | None) -> bool:
    return revision in {script.revision for script in _scripts().walk_revisions()}


def _oldest(connection: Connection) -> str | None:
    """Return the oldest revision whose code may run on this schema. Each migration since 0003 stores it."""
    # The comment on Alembic's table, because the table itself has only Alembic's columns.
    query = "SELECT obj_description('alembic_version'::regclass, 'pg_class')"
    return cast(str | None, connection.execute(text(query)).scalar_one())
