"""The `ordernumbers` command: this file assembles it, and each command group has a file of its own.

Results go to stdout, errors to stderr. With `--json` both are JSON. A module that only one command needs is imported
inside that command, so that the others start fast.
"""

import os
import sys

import psycopg
import typer
from sqlalchemy.exc import DBAPIError
from typer.exceptions import TyperException

from server.cli import archive, brand, campaign, database, hold, inventory, key, number, org, running
from server.cli.common import describe_database_error
from server.cli.output import fail
from server.errors import OperatorError

app = typer.Typer(
    help="Run the OrderNumbers service, and manage its database, organizations and phone numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (running.up, running.serve, running.edge, database.check, archive.archive):
    app.command()(command)
for name, group in (
    ("db", database.app),
    ("org", org.app),
    ("key", key.app),
    ("brand", brand.app),
    ("campaign", campaign.app),
    ("inventory", inventory.app),
    ("number", number.app),
    ("hold", hold.app),
):
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command line and exit with 0 on success, 1 on failure, 2 on wrong usage, 130 on Ctrl-C."""
    as_json = "--json" in sys.argv  # also for errors that occur before the arguments are parsed
    try:
        status = app(prog_name="ordernumbers", standalone_mode=not as_json)
        sys.stdout.flush()
    except TyperException as error:
        fail(error.format_message(), as_json, error.exit_code)
    except OperatorError as error:
        fail(str(error), as_json)
    except (DBAPIError, psycopg.Error) as error:
        fail(describe_database_error(error.orig if isinstance(error, DBAPIError) else error), as_json)
    except BrokenPipeError:
        # The reader closed our stdout. Without a valid stdout, Python's flush at exit would fail and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status)
