"""Brings a database to the newest schema, step by step (Alembic); the steps are in versions/.

docs/upgrades.md says which versions of the program and of the schema go together.
"""

import time
from pathlib import Path
from typing import cast

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from server.errors import OperatorError

ONE_AT_A_TIME = 6_733_663  # the advisory lock that two upgrades contend for
LOCK_TIMEOUT_MS = 300
"""How long a step waits for a table. Whoever else wants the table, such as every sale, waits as long behind it."""
PAUSE_SECONDS = 1.0
"""Between two tries, so that sales get on with their work."""
UPGRADE_SECONDS_MAX = 60.0
"""How long an upgrade is tried again and again."""

MIGRATE = "the database does not have this version's schema: run `ordernumbers db upgrade`"
NEWER = (
    "the database is newer than this version of the program: its schema is {current}, and this version knows none"
    " after {newest}; run a newer version"
)
IN_USE = (
    f"other transactions kept tables in use for {UPGRADE_SECONDS_MAX:.0f} s, so nothing was changed: "
    "run it again when the oldest one in pg_stat_activity has ended"
)
NOT_UTF8 = (
    "the database's encoding is {encoding}, and it must be UTF8: make another one with "
    "`CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`, and name that one in DATABASE_URL"
)


def newest() -> str:
    """The revision that this code expects."""
    return cast(str, _scripts().get_current_head())


def current(engine: Engine) -> str | None:
    """The revision the database is at; None for an empty one."""
    with engine.connect() as connection:
        return _current(connection)


def require(engine: Engine) -> None:
    """Raises OperatorError with what to do, unless this version can run on the database's schema as it is now.

    A newer schema is one it can run on if that says so: by the oldest revision whose code may.
    """
    with engine.connect() as connection:
        revision = _current(connection)
        if revision is None or (revision != newest() and _is_known(revision)):
            raise OperatorError(MIGRATE)
        if not _is_known(revision) and not _is_known(_oldest(connection)):
            raise OperatorError(NEWER.format(current=revision, newest=newest()))


def upgrade(engine: Engine) -> None:
    """Apply what is missing, in one transaction: it happens wholly or not at all.

    Raises OperatorError when the database is newer than this code, is not UTF8, or is in use for too long.
    """
    deadline = time.monotonic() + UPGRADE_SECONDS_MAX
    while not _is_upgraded(engine):
        if time.monotonic() > deadline:
            raise OperatorError(IN_USE)
        time.sleep(PAUSE_SECONDS)


def _is_upgraded(engine: Engine) -> bool:
    """Try it once; False when another transaction was in the way."""
    try:
        with engine.begin() as connection:
            _upgrade(connection)
    except DBAPIError as error:
        if isinstance(error.orig, LockNotAvailable | DeadlockDetected):
            return False
        raise
    return True


def _upgrade(connection: Connection) -> None:
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise OperatorError(NOT_UTF8.format(encoding=encoding))
    connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ONE_AT_A_TIME})
    revision = _current(connection)
    if revision is not None and not _is_known(revision):
        raise OperatorError(NEWER.format(current=revision, newest=newest()))
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
    """The oldest revision whose code may run on this schema; each migration since 0003 writes it down."""
    query = "SELECT obj_description('alembic_version'::regclass, 'pg_class')"
    return cast(str | None, connection.execute(text(query)).scalar_one())
