"""Commands for organizations and their credit: `org create`, `org credit` and `org show`.

Amounts are decimal text here, and integer micros in all other modules.
"""

from typing import Annotated

import typer

from server.cli.common import Json, Name, OrganizationId, in_transaction
from server.cli.output import print_result
from server.money import format_amount, parse_amount
from server.store import admin

app = typer.Typer(help="Manage organizations and their credit.", no_args_is_help=True)


@app.command("create")
def create(
    name: Name,
    credit: Annotated[str, typer.Option(metavar="AMOUNT", help="Credit at the start, like 100.00.")] = "0",
    as_json: Json = False,
) -> None:
    """Create an organization."""
    micros = parse_amount(credit)
    created = in_transaction(lambda connection: admin.create_organization(connection, name, micros))
    print_result(as_json, {"id": created}, f"Organization {created} has a balance of {format_amount(micros)}.")


# Without ignore_unknown_options, the amount -5.00 would be read as an option.
@app.command("credit", context_settings={"ignore_unknown_options": True})
def add_credit(
    org_id: OrganizationId,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="Like 100.00. Negative for a correction.")],
    note: Annotated[str | None, typer.Option(help="The reason, for the ledger.")] = None,
    as_json: Json = False,
) -> None:
    """Add an amount to an organization's balance, with a ledger entry."""
    micros = parse_amount(amount)
    balance = format_amount(in_transaction(lambda connection: admin.add_credit(connection, org_id, micros, note)))
    print_result(as_json, {"balance": balance}, f"The balance is {balance}.")


@app.command("show")
def show(org_id: OrganizationId, as_json: Json = False) -> None:
    """Show an organization's name, its balance, and how many numbers are assigned to it."""
    shown = in_transaction(lambda connection: admin.show_organization(connection, org_id))
    balance = format_amount(shown.balance_micros)
    result = {"id": shown.id, "name": shown.name, "balance": balance, "numbers": shown.numbers}
    print_result(as_json, result, f"{shown.name} ({shown.id}): balance {balance}, {shown.numbers} numbers")
