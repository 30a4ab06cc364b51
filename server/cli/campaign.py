"""Commands for campaigns: `campaign create` and `campaign set`."""

from typing import Annotated
from uuid import UUID

import typer

from server.cli.common import Json, Name, OrganizationId, in_transaction
from server.cli.output import print_result
from server.store import admin
from server.store.tables import CAMPAIGN_STATUSES

app = typer.Typer(help="Manage the campaigns of organizations.", no_args_is_help=True)

CampaignStatus = Annotated[str, typer.Option(metavar="STATUS", help=f"One of {', '.join(CAMPAIGN_STATUSES)}.")]


@app.command("create")
def create(
    org_id: OrganizationId,
    name: Name,
    status: CampaignStatus,
    brand: Annotated[UUID | None, typer.Option(metavar="BRAND_ID", help="One of the organization's brands.")] = None,
    as_json: Json = False,
) -> None:
    """Create a campaign."""
    created = in_transaction(lambda connection: admin.create_campaign(connection, org_id, name, status, brand))
    print_result(as_json, {"id": created}, f"Campaign {created} has the status {status}.")


@app.command("set")
def set_status(
    campaign_id: Annotated[UUID, typer.Argument(metavar="CAMPAIGN_ID", help="The campaign's id.")],
    status: CampaignStatus,
    as_json: Json = False,
) -> None:
    """Change a campaign's status."""
    in_transaction(lambda connection: admin.set_campaign(connection, campaign_id, status))
    print_result(as_json, {"id": campaign_id, "status": status}, f"Campaign {campaign_id} has the status {status}.")
