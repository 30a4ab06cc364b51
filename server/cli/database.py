"""Commands for the database as a whole: `db upgrade` and `check`."""

import typer

from server.cli.common import Json, database_url
from server.cli.output import print_result
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


def check(as_json: Json = False) -> None:
    """Verify the data and the durability settings of the database.

    Numbers, orders, holds, releases, the history, balances and ledger entries must agree.
    The settings must keep every acknowledged commit in a crash.
    The command is safe while orders are placed.
    The exit status is 1 if something is wrong.
    """
    from server.store.check import durability, violations  # noqa: PLC0415

    engine = admin_engine(database_url())
    found = [*violations(engine), *durability(engine)]
    print_result(as_json, {"ok": not found, "violations": found}, "\n".join(found) or "All invariants hold.")
    if found:
        raise typer.Exit(1)
