"""Commands for the numbers that are for sale: `inventory import` and `inventory stats`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Annotated

import typer

from server.cli.common import Json, database_url, in_transaction
from server.cli.output import fail, print_result, print_table, print_text, progress_bar
from server.errors import OperatorError
from server.store.engine import admin_engine

if TYPE_CHECKING:
    from server.store.inventory import Imported

app = typer.Typer(help="Manage the phone numbers for sale.", no_args_is_help=True)


@app.command("import")
def import_file(
    file: Annotated[str, typer.Argument(metavar="FILE.csv", help="A UTF-8 file, or - for stdin.")],
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip bad rows and import the others.")] = False,
    as_json: Json = False,
) -> None:
    """Import numbers from a CSV file.

    The first line names the columns, in any order:
    number,number_type,sms_enabled,mms_enabled,price

    All rows are checked first. Nothing is imported if one of them is bad.
    An existing number gets the new type, capabilities and price.
    Its assignment does not change.
    If an import is interrupted, run it again to complete it.
    """
    from server.store.inventory import import_csv  # noqa: PLC0415

    engine = admin_engine(database_url())
    with _open(file) as lines, progress_bar("checking rows") as progress:
        imported = import_csv(engine, lines, skip_bad=skip_bad, progress=progress)
    counts = {"added": imported.added, "updated": imported.updated, "unchanged": imported.unchanged}
    bad = {"bad_count": imported.bad_count, "bad": [row._asdict() for row in imported.bad]}
    if not as_json:
        _print_bad_rows(imported)
    if imported.bad_count and not skip_bad:
        bad_rows = "1 bad row" if imported.bad_count == 1 else f"{imported.bad_count} bad rows"
        fail(f"nothing was imported, because of {bad_rows} (--skip-bad imports the others)", as_json, more=bad)
    summary = ", ".join(f"{count} {what}" for what, count in counts.items())
    print_result(as_json, counts | bad, f"{summary}, {imported.bad_count} bad")


@app.command("stats")
def stats(as_json: Json = False) -> None:
    """Count the available, assigned, held and resting numbers of each type."""
    from server.store.inventory import stats as count_numbers  # noqa: PLC0415

    counts = in_transaction(count_numbers)
    print_result(as_json, counts, lambda: print_table([{"type": each, **counts[each]} for each in counts]))


def _print_bad_rows(imported: "Imported") -> None:
    for row in imported.bad:
        print_text(f"line {row.line}: {row.reason}", sys.stderr)
    if imported.bad_count > len(imported.bad):
        print_text(f"… and {imported.bad_count - len(imported.bad)} more", sys.stderr)


@contextmanager
def _open(file: str) -> Iterator[IO[str]]:
    is_stdin = file == "-"
    try:
        # utf-8-sig skips the byte order mark that spreadsheet programs write.
        lines = open(0 if is_stdin else file, encoding="utf-8-sig", newline="", closefd=not is_stdin)  # noqa: SIM115
    except OSError as error:
        raise OperatorError(f"cannot read {file}: {error.strerror}") from None
    with lines:
        yield lines
