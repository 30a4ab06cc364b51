"""Commands for API keys: `key create`, `key list` and `key revoke`."""

from datetime import timedelta
from typing import Annotated
from uuid import UUID

import typer
from sqlalchemy import Connection

from server.cli.common import Json, OrganizationId, in_transaction, parse_duration
from server.cli.output import format_time, print_result, print_table
from server.scopes import SCOPES
from server.store import admin

app = typer.Typer(help="Manage API keys.", no_args_is_help=True)


@app.command("create")
def create(
    org_id: OrganizationId,
    scope: Annotated[list[str], typer.Option(help=f"{' or '.join(SCOPES)}. Repeat the option for several.")],
    expires_in: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Like 90d. Units: s, m, h, d, w. Default: never.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create an API key and print it. It cannot be shown again."""
    life = parse_duration(expires_in) if expires_in is not None else None
    new, stored = in_transaction(lambda connection: _create(connection, org_id, scope, life))
    result = {"id": new.id, "key": new.key, "scopes": stored.scopes, "expires_at": format_time(stored.expires_at)}
    print_result(as_json, result, f"{new.key}\nThe key is shown only once, so store it now. Its id is {new.id}.")


@app.command("list")
def list_all(org_id: OrganizationId, as_json: Json = False) -> None:
    """List all keys of an organization, oldest first. Expired and revoked keys are included."""
    keys = in_transaction(lambda connection: admin.list_keys(connection, org_id))
    rows = [
        {
            "id": each.id,
            "scopes": each.scopes,
            "created_at": format_time(each.created_at),
            "expires_at": format_time(each.expires_at),
            "revoked_at": format_time(each.revoked_at),
        }
        for each in keys
    ]
    print_result(as_json, {"keys": rows}, lambda: print_table(rows))


@app.command("revoke")
def revoke(
    key_id: Annotated[UUID, typer.Argument(metavar="KEY_ID", help="The key's id, not the key itself.")],
    as_json: Json = False,
) -> None:
    """Revoke a key. From then on it cannot place orders. This cannot be undone."""
    revoked_at = format_time(in_transaction(lambda connection: admin.revoke_key(connection, key_id)))
    print_result(as_json, {"id": key_id, "revoked_at": revoked_at}, f"Key {key_id} was revoked at {revoked_at}.")


def _create(
    connection: Connection, organization_id: UUID, scopes: list[str], life: timedelta | None
) -> tuple[admin.NewKey, admin.KeyInfo]:
    new = admin.create_key(connection, organization_id, scopes, life)
    # Read it back: the database computed when it expires.
    (stored,) = (each for each in admin.list_keys(connection, organization_id) if each.id == new.id)
    return new, stored
