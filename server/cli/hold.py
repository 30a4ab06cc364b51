"""Commands for holds: `hold list`."""

import typer

from server.cli.common import Json, OrganizationId, in_transaction
from server.cli.output import format_time, print_result, print_table

app = typer.Typer(help="See which numbers are held.", no_args_is_help=True)


@app.command("list")
def list_all(org_id: OrganizationId, as_json: Json = False) -> None:
    """List the holds of an organization that have not ended, oldest first.

    Each has the numbers that it still keeps. Those that were ordered are not among them.
    """
    from server.store import operator_numbers  # noqa: PLC0415

    holds = in_transaction(lambda connection: operator_numbers.list_holds(connection, org_id))
    rows = [
        {
            "id": each.id,
            "numbers": each.numbers,
            "created_at": format_time(each.created_at),
            "expires_at": format_time(each.expires_at),
        }
        for each in holds
    ]
    print_result(as_json, {"holds": rows}, lambda: print_table(rows))
