"""The command `archive`."""

import signal
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated

import typer

from server.cli.common import Json, database_url
from server.cli.output import print_result, progress_bar
from server.errors import OperatorError
from server.store.engine import admin_engine

ROWS = {
    "orders": "orders",
    "assignment": "assignments",
    "ledger_entry": "ledger entries",
    "hold": "holds",
    "number_event": "events",
}
"""What the rows of a table are called."""


def archive(
    before: Annotated[str, typer.Option(metavar="DATE", help="Move what is older, like 2026-01-31. UTC.")],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new file. It gets JSON Lines, compressed with gzip.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be moved.")] = False,
    as_json: Json = False,
) -> None:
    """Move old orders, ledger entries and holds from the database to a file.

    An order is moved when its organization has none of its numbers any more.
    The newest ledger entry of each organization stays.
    The command is safe while orders are placed.
    If it is interrupted, run it again with another file.
    Some rows may then be in both files.
    """
    from server.store import archive as archiving  # noqa: PLC0415

    start = _start_of(before)
    engine = admin_engine(database_url())
    if dry_run:
        counts = archiving.count(engine, start)
    else:
        if to is None:
            raise OperatorError("--to must name a new file, unless --dry-run is given")
        # As Ctrl-C does: so that it removes its indexes.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with progress_bar("archiving") as progress:
            counts = archiving.archive(engine, start, to, progress)
    rows = ", ".join(f"{count} {ROWS[table]}" for table, count in counts.items())
    if not any(counts.values()):
        told = f"Nothing that is older than {before} can be moved."
    else:
        told = f"{rows} would be moved." if dry_run else f"{rows} were moved to {to}."
    print_result(as_json, {"before": before, "is_dry_run": dry_run, "rows": counts}, told)


def _start_of(text: str) -> datetime:
    """The start of the day, in UTC. Raises OperatorError for anything but a date."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise OperatorError(f"{text!r} is not a date. Write it like 2026-01-31")
    return datetime.combine(day, time(), UTC)
