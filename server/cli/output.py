"""Printing results, tables, JSON and errors."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any, Never


def print_result(as_json: bool, result: Mapping[str, Any], text: str | Callable[[], None]) -> None:
    """Print `result` as JSON, or else `text`. A function as `text` does the printing itself."""
    if as_json:
        print_json(result)
    elif callable(text):
        text()
    else:
        print_text(text)


def print_json(result: Mapping[str, Any], file: IO[str] | None = None) -> None:
    """Print one line of JSON, on stdout or into `file`."""
    print(json.dumps(result, default=str), file=file)


def print_text(text: str, file: IO[str] | None = None) -> None:
    """Print the text, on stdout or into `file`. Characters that do not print are escaped."""
    print(_escape(text), file=file)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows under their keys as a header, or `none` if there are no rows."""
    if not rows:
        print_text("none")
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    # In a pipe, Rich would assume 80 columns and wrap the ids.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@contextmanager
def progress_bar(doing: str) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a progress bar on stderr if that is a terminal. Yields a function: what is done, how many, of how many."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda doing, done, total: bar.update(task, description=doing, completed=done, total=total)


def format_time(time: datetime | None) -> str | None:
    """Return the time in UTC as RFC 3339 writes it, to the second."""
    return None if time is None else time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fail(reason: str, as_json: bool, status: int = 1, more: Mapping[str, Any] | None = None) -> Never:
    """Print the error on stderr and exit with `status`. `more` is added to the JSON."""
    if as_json:
        print_json({"error": reason, **(more or {})}, sys.stderr)
    else:
        print_text(f"ordernumbers: {reason}", sys.stderr)
    sys.exit(status)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return "" if value is None else _escape(str(value))


def _escape(text: str) -> str:
    """Escape characters that do not print, such as control and bidi characters."""
    # Names and file contents come from others, and a terminal would carry out control sequences in them.
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
