"""Commands for the database as a whole: `db upgrade` and `check`."""

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from server.cli.common import Json, database_url
from server.cli.output import print_result
from server.errors import OperatorError
from server.store.engine import admin_engine

app = typer.Typer(help="Manage the database.", no_args_is_help=True)


@app.command("upgrade")
def upgrade(as_json: Json = False) -> None:
    """Upgrade the database to the newest schema. Does nothing if it already has it."""
    from server.store import migrations  # noqa: PLC0415

    engine = admin_engine(database_url())
    before = migrations.current(engine)
    migrations.upgrade(engine)
    after = migrations.current(engine)
    done = f"already at {after}" if before == after else f"upgraded from {before or 'an empty schema'} to {after}"
    print_result(as_json, {"from": before, "to": after}, f"The database is {done}.")


def check(
    metrics_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the result there, for the node exporter. It must end in .prom."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify the data and the durability settings of the database.

    Numbers, orders, holds, releases, the history, balances and ledger entries must agree.
    The settings must keep every acknowledged commit in a crash.
    The command is safe while orders are placed.
    The exit status is 1 if something is wrong.
    """
    from server.store.check import durability, violations  # noqa: PLC0415

    if metrics_file:
        _require_writable(metrics_file)
    engine, started = admin_engine(database_url()), time.monotonic()
    found = [*violations(engine), *durability(engine)]
    seconds = time.monotonic() - started
    print_result(as_json, {"ok": not found, "violations": found}, "\n".join(found) or "All invariants hold.")
    if metrics_file:
        _write_metrics(metrics_file, len(found), seconds)
    if found:
        raise typer.Exit(1)


def _require_writable(path: Path) -> None:
    """Raise OperatorError if the file cannot be replaced."""
    if path.suffix != ".prom":
        raise OperatorError(f"{path} does not end in .prom, so the node exporter would not read it")
    if os.path.isdir(path):  # Path.is_dir() raises an error in a folder that we may not enter
        raise OperatorError(f"{path} is a folder")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OperatorError(f"cannot write to the folder {path.parent}: {error.strerror}") from None


def _write_metrics(path: Path, violations: int, seconds: float) -> None:
    """Replace the file. A concurrent reader gets the whole old file or the whole new one."""
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile  # noqa: PLC0415

    registry = CollectorRegistry()
    for name, meaning, value in (
        ("ok", "1 if the last check has found nothing wrong.", not violations),
        ("violations", "What the last check has found wrong.", violations),
        ("timestamp_seconds", "When the last check ended, in seconds since 1970.", time.time()),
        ("duration_seconds", "How long the last check took.", seconds),
    ):
        Gauge(f"ordernumbers_check_{name}", meaning, registry=registry).set(value)
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise OperatorError(f"cannot write {path}: {error.strerror}") from None
