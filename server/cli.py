"""The `ordernumbers` command. Results go to stdout, what went wrong to stderr; `--json` makes both JSON.

Money is decimal text here and micros everywhere else. What only some commands need is imported by them, so that the
others start at once.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Annotated, Any, Never, TypeVar
from uuid import UUID

import psycopg
import typer
from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from typer.exceptions import TyperException

from server.config import settings
from server.errors import OperatorError
from server.keys import SCOPES
from server.money import format_amount, parse_amount
from server.store import admin
from server.store.engine import admin_engine, in_transaction
from server.store.tables import CAMPAIGN_STATUSES, IDENTITY_STATUSES

if TYPE_CHECKING:
    from server.store.inventory import Imported, Progress

T = TypeVar("T")

app = typer.Typer(
    help="Sells phone numbers out of an inventory: the service, its database, its organizations and its numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _group(name: str, purpose: str) -> typer.Typer:
    group = typer.Typer(help=purpose, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


db = _group("db", "The database.")
org = _group("org", "Organizations and their credit.")
key = _group("key", "API keys.")
brand = _group("brand", "Brands of an organization.")
campaign = _group("campaign", "Campaigns of an organization.")
inventory = _group("inventory", "The numbers there are to sell.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, errors too.")]
OrganizationId = Annotated[UUID, typer.Argument(metavar="ORG_ID", help="The organization.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help=f"1 to {admin.TEXT_CHARS_MAX} characters.")]
IdentityStatus = Annotated[str, typer.Option(metavar="STATUS", help=f"One of {', '.join(IDENTITY_STATUSES)}.")]
CampaignStatus = Annotated[str, typer.Option(metavar="STATUS", help=f"One of {', '.join(CAMPAIGN_STATUSES)}.")]

AS_ARGUMENTS = {"ignore_unknown_options": True}  # so that -5.00 is an amount


def main() -> None:
    """Run the command line and exit: 0, 1 when it could not be done, 2 when it was not understood."""
    as_json = "--json" in sys.argv
    try:
        status = app(prog_name="ordernumbers", standalone_mode=not as_json)
        sys.stdout.flush()
    except TyperException as error:
        _fail(error.format_message(), as_json, error.exit_code)
    except OperatorError as error:
        _fail(str(error), as_json)
    except (DBAPIError, psycopg.Error) as error:
        _fail(_trouble(error.orig if isinstance(error, DBAPIError) else error), as_json)
    except BrokenPipeError:  # whoever read us has read enough; the interpreter shall not complain when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(status)


# ---------------------------------------------------------------- running


@app.command()
def up(
    demo: Annotated[
        bool | None,
        typer.Option("--demo/--no-demo", help="Make a demo organization; by default not in DATABASE_URL's database."),
    ] = None,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Bring DATABASE_URL's database to the newest schema first.")
    ] = False,
    _as_json: Json = False,
) -> None:
    """Run everything on this machine: PostgreSQL, migrations, demo data, servers and Envoy, until Ctrl-C.

    With DATABASE_URL it runs on that database, and migrates it or puts a demo into it only when told.
    """
    from server.run.up import run  # noqa: PLC0415

    run(settings(), demo=demo, migrate=migrate)


@app.command()
def serve(_as_json: Json = False) -> None:
    """Run the gRPC server alone, all its workers. SIGTERM drains them; SIGHUP replaces them one by one."""
    from server.run.serve import serve as run  # noqa: PLC0415
    from server.store import migrations  # noqa: PLC0415

    url = _database_url()
    migrations.require(admin_engine(url))
    run(settings(), url)


@app.command()
def edge(
    only_print: Annotated[bool, typer.Option("--print", help="Print Envoy's configuration and run nothing.")] = False,
    _as_json: Json = False,
) -> None:
    """Run Envoy alone, set up as the settings say."""
    from server.run.edge import edge_config, run  # noqa: PLC0415

    if only_print:
        _print_json(edge_config(settings()))
    else:
        run(settings())


# ---------------------------------------------------------------- the database


@db.command("upgrade")
def db_upgrade(as_json: Json = False) -> None:
    """Bring the database to the newest schema; does nothing where it is already."""
    from server.store import migrations  # noqa: PLC0415

    engine = admin_engine(_database_url())
    before = migrations.current(engine)
    migrations.upgrade(engine)
    after = migrations.current(engine)
    done = f"upgraded from {before or 'nothing'} to {after}" if before != after else f"already at {after}"
    _tell(as_json, {"from": before, "to": after}, f"The database is {done}.")


@app.command()
def check(as_json: Json = False) -> None:
    """Verify the invariants of numbers, assignments, orders, balances and ledger, and that the database keeps what it
    acknowledged. It may run while orders are taken."""
    from server.store.check import durability, violations  # noqa: PLC0415

    engine = admin_engine(_database_url())
    found = [*violations(engine), *durability(engine)]
    _tell(as_json, {"ok": not found, "violations": found}, "\n".join(found) or "All invariants hold.")
    if found:
        raise typer.Exit(1)


# ---------------------------------------------------------------- organizations


@org.command("create")
def org_create(
    name: Name,
    credit: Annotated[str, typer.Option(metavar="AMOUNT", help="Credit it starts with, like 100.00.")] = "0",
    as_json: Json = False,
) -> None:
    """Create an organization."""
    micros = parse_amount(credit)
    created = _in_transaction(lambda connection: admin.create_organization(connection, name, micros))
    _tell(as_json, {"id": created}, f"Organization {created} has {format_amount(micros)} of credit.")


@org.command("credit", context_settings=AS_ARGUMENTS)
def org_credit(
    org_id: OrganizationId,
    amount: Annotated[str, typer.Argument(help="Like 100.00; negative for a correction.")],
    note: Annotated[str | None, typer.Option(help="Why, for the ledger.")] = None,
    as_json: Json = False,
) -> None:
    """Write a ledger entry that adds to an organization's balance."""
    micros = parse_amount(amount)
    balance = format_amount(_in_transaction(lambda connection: admin.add_credit(connection, org_id, micros, note)))
    _tell(as_json, {"balance": balance}, f"The balance is {balance}.")


@org.command("show")
def org_show(org_id: OrganizationId, as_json: Json = False) -> None:
    """Show an organization: its name, its balance, and how many numbers are assigned to it."""
    shown = _in_transaction(lambda connection: admin.show_organization(connection, org_id))
    balance = format_amount(shown.balance_micros)
    result = {"id": shown.id, "name": shown.name, "balance": balance, "numbers": shown.numbers}
    _tell(as_json, result, f"{shown.name} ({shown.id}): balance {balance}, {shown.numbers} numbers")


# ---------------------------------------------------------------- keys


@key.command("create")
def key_create(
    org_id: OrganizationId,
    scope: Annotated[list[str], typer.Option(help=f"{' or '.join(SCOPES)}; may be given again.")],
    expires_in: Annotated[str | None, typer.Option(metavar="TIME", help="Like 90d; units s, m, h, d, w.")] = None,
    as_json: Json = False,
) -> None:
    """Create an API key and print it, which happens only this once."""
    life = _duration(expires_in) if expires_in is not None else None
    created, known = _in_transaction(lambda connection: _created_key(connection, org_id, scope, life))
    result = {"id": created.id, "key": created.key, "scopes": known.scopes, "expires_at": _instant(known.expires_at)}
    _tell(as_json, result, f"{created.key}\nThis is shown only once: keep it now. Its id is {created.id}.")


@key.command("list")
def key_list(org_id: OrganizationId, as_json: Json = False) -> None:
    """List every key an organization ever had, the oldest first."""
    keys = _in_transaction(lambda connection: admin.list_keys(connection, org_id))
    rows = [
        {
            "id": each.id,
            "scopes": each.scopes,
            "created_at": _instant(each.created_at),
            "expires_at": _instant(each.expires_at),
            "revoked_at": _instant(each.revoked_at),
        }
        for each in keys
    ]
    _tell(as_json, {"keys": rows}, lambda: _print_table(rows))


@key.command("revoke")
def key_revoke(
    key_id: Annotated[UUID, typer.Argument(metavar="KEY_ID", help="The key's id, not the key.")], as_json: Json = False
) -> None:
    """Revoke a key for good: from now on it assigns nothing."""
    revoked_at = _instant(_in_transaction(lambda connection: admin.revoke_key(connection, key_id)))
    _tell(as_json, {"id": key_id, "revoked_at": revoked_at}, f"Key {key_id} is revoked since {revoked_at}.")


# ---------------------------------------------------------------- brands and campaigns


@brand.command("create")
def brand_create(org_id: OrganizationId, name: Name, identity_status: IdentityStatus, as_json: Json = False) -> None:
    """Create a brand."""
    created = _in_transaction(lambda connection: admin.create_brand(connection, org_id, name, identity_status))
    _tell(as_json, {"id": created}, f"Brand {created} is {identity_status}.")


@brand.command("set")
def brand_set(
    brand_id: Annotated[UUID, typer.Argument(metavar="BRAND_ID")],
    identity_status: IdentityStatus,
    as_json: Json = False,
) -> None:
    """Change a brand's identity status."""
    _in_transaction(lambda connection: admin.set_brand(connection, brand_id, identity_status))
    _tell(as_json, {"id": brand_id, "identity_status": identity_status}, f"Brand {brand_id} is {identity_status}.")


@campaign.command("create")
def campaign_create(
    org_id: OrganizationId,
    name: Name,
    status: CampaignStatus,
    brand: Annotated[UUID | None, typer.Option(metavar="BRAND_ID", help="One of the organization's brands.")] = None,
    as_json: Json = False,
) -> None:
    """Create a campaign."""
    created = _in_transaction(lambda connection: admin.create_campaign(connection, org_id, name, status, brand))
    _tell(as_json, {"id": created}, f"Campaign {created} is {status}.")


@campaign.command("set")
def campaign_set(
    campaign_id: Annotated[UUID, typer.Argument(metavar="CAMPAIGN_ID")], status: CampaignStatus, as_json: Json = False
) -> None:
    """Change a campaign's status."""
    _in_transaction(lambda connection: admin.set_campaign(connection, campaign_id, status))
    _tell(as_json, {"id": campaign_id, "status": status}, f"Campaign {campaign_id} is {status}.")


# ---------------------------------------------------------------- the inventory


@inventory.command("import")
def inventory_import(
    file: Annotated[str, typer.Argument(metavar="FILE.csv", help="UTF-8; '-' reads stdin.")],
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Import the good rows though others are bad.")] = False,
    as_json: Json = False,
) -> None:
    """Import numbers from CSV.

    The first line names the columns, in any order: number,number_type,sms_enabled,mms_enabled,price. Every row is
    checked first, and nothing is imported if any is bad. A number already there is updated in type, capabilities and
    price, never in ownership. An import that was interrupted is finished by running it again.
    """
    from server.store.inventory import import_csv  # noqa: PLC0415

    engine = admin_engine(_database_url())
    with _opened(file) as lines, _shown_progress() as progress:
        imported = import_csv(engine, lines, skip_bad=skip_bad, progress=progress)
    counts = {"added": imported.added, "updated": imported.updated, "unchanged": imported.unchanged}
    bad = {"bad_count": imported.bad_count, "bad": [row._asdict() for row in imported.bad]}
    if not as_json:
        _print_bad_rows(imported)
    if imported.bad_count and not skip_bad:
        bad_rows = "1 bad row" if imported.bad_count == 1 else f"{imported.bad_count} bad rows"
        reason = f"nothing was imported, because of {bad_rows} (--skip-bad imports the others)"
        _fail(reason, as_json, more=bad)
    summary = ", ".join(f"{count} {what}" for what, count in counts.items())
    _tell(as_json, counts | bad, f"{summary}, {imported.bad_count} bad")


@inventory.command("stats")
def inventory_stats(as_json: Json = False) -> None:
    """Count the numbers of each type: available, assigned, quarantined."""
    from server.store.inventory import stats  # noqa: PLC0415

    counts = _in_transaction(stats)
    _tell(as_json, counts, lambda: _print_table([{"type": each, **counts[each]} for each in counts]))


def _print_bad_rows(imported: "Imported") -> None:
    for row in imported.bad:
        _print(f"line {row.line}: {row.reason}", sys.stderr)
    if imported.bad_count > len(imported.bad):
        _print(f"… and {imported.bad_count - len(imported.bad)} more", sys.stderr)


@contextmanager
def _opened(file: str) -> Iterator[IO[str]]:
    stdin = file == "-"
    try:
        lines = open(0 if stdin else file, encoding="utf-8-sig", newline="", closefd=not stdin)  # noqa: SIM115
    except OSError as error:
        raise OperatorError(f"cannot read {file}: {error.strerror}") from None
    with lines:
        yield lines


@contextmanager
def _shown_progress() -> "Iterator[Progress]":
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking rows", total=None)
        yield lambda doing, done, total: bar.update(task, description=doing, completed=done, total=total)


# ---------------------------------------------------------------- in common

_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _database_url() -> str:
    """DATABASE_URL, else the embedded database's. Raises OperatorError, saying what to do, when that is not running."""
    url = settings().database_url
    if url is not None:
        return url
    from server.run.embedded.postgres import url_of_running  # noqa: PLC0415

    return url_of_running(settings().data_dir)


def _in_transaction(work: Callable[[Connection], T]) -> T:
    return in_transaction(admin_engine(_database_url()), work)


def _created_key(
    connection: Connection, organization_id: UUID, scopes: list[str], life: timedelta | None
) -> tuple[admin.NewKey, admin.Key]:
    created = admin.create_key(connection, organization_id, scopes, life)
    (known,) = (each for each in admin.list_keys(connection, organization_id) if each.id == created.id)
    return created, known


def _duration(told: str) -> timedelta:
    match = _DURATION.fullmatch(told)
    if match is None:
        raise OperatorError(f"{told!r} is not a time: a whole number and a unit of s, m, h, d, w, like 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tell(as_json: bool, result: Mapping[str, Any], told: str | Callable[[], None]) -> None:
    if as_json:
        _print_json(result)
    elif callable(told):
        told()
    else:
        _print(told)


def _print(text: str, file: IO[str] | None = None) -> None:
    print(_harmless(text), file=file)


def _harmless(text: str) -> str:
    """The text with escapes for what does not print, such as control and bidi characters: names and files are others',
    and a terminal obeys."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _print_json(result: Mapping[str, Any], file: IO[str] | None = None) -> None:
    print(json.dumps(result, default=str), file=file)


def _print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        _print("none")
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    return "" if value is None else _harmless(str(value))


def _fail(reason: str, as_json: bool, status: int = 1, more: Mapping[str, Any] | None = None) -> Never:
    if as_json:
        _print_json({"error": reason, **(more or {})}, sys.stderr)
    else:
        _print(f"ordernumbers: {reason}", sys.stderr)
    sys.exit(status)


def _schema_trouble() -> str:
    """Why a table or a column is not there."""
    from server.store import migrations  # noqa: PLC0415

    try:
        migrations.require(admin_engine(_database_url()))
    except OperatorError as error:
        return str(error)
    return "the database's schema is not what its revision says"


def _trouble(error: BaseException | None) -> str:
    """What the database or the way to it said, in a sentence without a password."""
    if isinstance(error, UndefinedTable | UndefinedColumn):
        return _schema_trouble()
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return f"the database answered: {error.diag.message_primary}"
    if isinstance(error, psycopg.OperationalError):
        return f"cannot reach the database: {' '.join(str(error).split())}"
    return "DATABASE_URL is not a URL that PostgreSQL understands"  # which is not repeated: it may hold a password


if __name__ == "__main__":
    main()
