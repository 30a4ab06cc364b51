"""Commands for brands: `brand create` and `brand set`."""

from typing import Annotated
from uuid import UUID

import typer

from server.cli.common import Json, Name, OrganizationId, in_transaction
from server.cli.output import print_result
from server.store import admin
from server.store.tables import IDENTITY_STATUSES

app = typer.Typer(help="Manage the brands of organizations.", no_args_is_help=True)

IdentityStatus = Annotated[str, typer.Option(metavar="STATUS", help=f"One of {', '.join(IDENTITY_STATUSES)}.")]


@app.command("create")
def create(org_id: OrganizationId, name: Name, identity_status: IdentityStatus, as_json: Json = False) -> None:
    """Create a brand."""
    created = in_transaction(lambda connection: admin.create_brand(connection, org_id, name, identity_status))
    print_result(as_json, {"id": created}, f"Brand {created} has the identity status {identity_status}.")


@app.command("set")
def set_status(
    brand_id: Annotated[UUID, typer.Argument(metavar="BRAND_ID", help="The brand's id.")],
    identity_status: IdentityStatus,
    as_json: Json = False,
) -> None:
    """Change a brand's identity status."""
    in_transaction(lambda connection: admin.set_brand(connection, brand_id, identity_status))
    result = {"id": brand_id, "identity_status": identity_status}
    print_result(as_json, result, f"Brand {brand_id} has the identity status {identity_status}.")
