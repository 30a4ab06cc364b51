"""What every transaction of ours has in common: its limits, and its end, which is not always confirmed."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from psycopg import Error, InternalError

from server import metrics
from server.rules.values import Id
from server.store.connection import DatabaseAway, PipelinedConnection, Result
from server.store.statements import BoundStatement, array, load, milliseconds

BEGIN, COMMIT = load("session", "begin"), load("session", "commit")
LIMIT_TRANSACTION = load("order", "limit_transaction")
LOCK_ORGANIZATIONS = load("order", "lock_organizations")
STATEMENTS = (BEGIN, COMMIT, LIMIT_TRANSACTION, LOCK_ORGANIZATIONS)


class Limits(NamedTuple):
    """How long a transaction may wait for a lock, and how long each of its statements may take."""

    lock_seconds: float
    statement_seconds: float

    def statement(self) -> BoundStatement:
        return LIMIT_TRANSACTION(
            lock_timeout=milliseconds(self.lock_seconds * 1000),
            statement_timeout=milliseconds(self.statement_seconds * 1000),
        )

    def begin(self) -> dict[str, BoundStatement]:
        """The statements that begin a transaction with these limits."""
        return {"begin": BEGIN(), "limit": self.statement()}


class OutcomeUnknown(Exception):
    """A COMMIT was sent, and it is not certain that it lasts. What is in `sent`, by id, may have been carried out."""

    def __init__(self, sent: Mapping[Id, Any]) -> None:
        super().__init__(f"{len(sent)} writes")
        self.sent = sent


class InProgress(Exception):
    """Another transaction is using the same idempotency key. This one did nothing."""


async def run(connection: PipelinedConnection, statements: dict[str, BoundStatement]) -> dict[str, Result]:
    """Execute the statements in one round trip. Return their results by the same names."""
    started = time.monotonic()
    results = dict(zip(statements, await connection.run(*statements.values()), strict=True))
    metrics.READ_SECONDS.observe(time.monotonic() - started)
    return results


async def check(connection: PipelinedConnection, limits: Limits) -> None:
    """Run a transaction that locks nothing. Raises as a write's transaction does."""
    await wait_for_locks(connection, limits, [])


async def wait_for_locks(connection: PipelinedConnection, limits: Limits, organization_ids: Collection[Id]) -> None:
    """Run a transaction that only locks these organizations. Those that had locked them before it have ended then."""
    await run(connection, limits.begin() | {"accounts": LOCK_ORGANIZATIONS(organization_ids=array(organization_ids))})
    await finish(connection, [], {})


async def finish(connection: PipelinedConnection, statements: Sequence[BoundStatement], sent: Mapping[Id, Any]) -> None:
    """Round trip 2: write, and commit. `sent` is what these statements carry out. Raises OutcomeUnknown."""
    started = time.monotonic()
    try:
        *_, commit = await connection.run(*statements, COMMIT())
    except BaseException as error:
        if _is_rolled_back(error):
            raise
        # Also without a write. Row locks are logged too, so this COMMIT may wait for a standby and keep its locks.
        raise OutcomeUnknown(sent) from error
    metrics.COMMIT_SECONDS.observe(time.monotonic() - started)
    if commit.tag == "ROLLBACK":  # PostgreSQL reports that for the COMMIT of an aborted transaction
        raise InternalError("COMMIT was answered with ROLLBACK")
    # The warning: a cancelled wait for the standby. The primary has the transaction, and perhaps no other server.
    if commit.tag != "COMMIT" or connection.was_warned:
        raise OutcomeUnknown(sent)


def _is_rolled_back(error: BaseException) -> bool:
    """Whether the server itself has refused a statement, and so has rolled the transaction back."""
    if isinstance(error, DatabaseAway):
        return error.rolled_back
    return isinstance(error, Error) and error.sqlstate is not None
