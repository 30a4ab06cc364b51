"""What several commands share: argument types, durations, transactions, and the database they work on."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, TypeVar
from uuid import UUID

import psycopg
import typer
from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import Connection

from server.config import settings
from server.errors import OperatorError
from server.store import admin
from server.store.conflicts import CONFLICTS
from server.store.engine import admin_engine
from server.store.engine import in_transaction as run_in_transaction

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print results and errors as JSON.")]
JsonErrors = Annotated[bool, typer.Option("--json", help="Print errors as JSON.")]
OrganizationId = Annotated[UUID, typer.Argument(metavar="ORG_ID", help="The organization's id.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help=f"1 to {admin.TEXT_CHARS_MAX} characters.")]

_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """`90d` -> 90 days. Raises OperatorError for anything but a positive whole number and a unit."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise OperatorError(f"{text!r} is not a duration. Write a whole number and a unit (s, m, h, d, w), like 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def database_url() -> str:
    """Return DATABASE_URL, or else the embedded database's URL. Raises OperatorError if that is not running."""
    url = settings().database_url
    if url is not None:
        return url
    from server.run.embedded.postgres import url_of_running  # noqa: PLC0415

    return url_of_running(settings().data_dir)


def in_transaction(work: Callable[[Connection], T]) -> T:
    """Return what `work` returns, after its transaction has committed."""
    return run_in_transaction(admin_engine(database_url()), work)


def describe_database_error(error: BaseException | None) -> str:
    """Describe an error of the database, or of the connection to it, on one line and without a password."""
    if isinstance(error, UndefinedTable | UndefinedColumn):
        return _describe_schema_error()
    if isinstance(error, CONFLICTS):
        return "other transactions were in the way: run it again"
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return f"database error: {error.diag.message_primary}"
    if isinstance(error, psycopg.OperationalError):
        return f"cannot reach the database: {' '.join(str(error).split())}"
    # The error's own text may repeat the URL, and the URL may hold a password.
    return "DATABASE_URL is not a URL that PostgreSQL understands"


def _describe_schema_error() -> str:
    """Explain why a table or a column is missing."""
    from server.store import migrations  # noqa: PLC0415

    try:
        migrations.require(admin_engine(database_url()))
    except OperatorError as error:
        return str(error)
    return "the database lacks a table or a column that its schema version should have"
