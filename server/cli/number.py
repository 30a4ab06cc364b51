"""Commands for single numbers: `number search`, `number list`, `number release` and `number history`."""

from typing import Annotated, Any

import typer

from server.cli.common import Json, OrganizationId, in_transaction
from server.cli.number_history import as_json_event, sentence
from server.cli.output import format_time, print_result, print_table, print_text
from server.config import settings
from server.errors import OperatorError
from server.money import format_amount
from server.rules.values import Criteria

app = typer.Typer(help="Find numbers, and see or end what became of them.", no_args_is_help=True)

Number = Annotated[str, typer.Argument(metavar="NUMBER", help="In E.164 format, like +14155550100.")]
Capability = Annotated[bool | None, typer.Option(help="Only numbers with it, or only those without. Default: both.")]


@app.command("search")
def search(
    *,
    area_code: Annotated[str | None, typer.Option(metavar="NPA", help="3 digits, for +1 and these.")] = None,
    number_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="local, toll_free or short_code.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(metavar="DIGITS", help="1 to 15 digits of the number.")] = None,
    sms: Capability = None,
    mms: Capability = None,
    quantity: Annotated[int, typer.Option(metavar="N", help="The most numbers to show: 1 to 100.")] = 10,
    as_json: Json = False,
) -> None:
    """Show numbers that every organization can order now. It reserves none of them."""
    from server.store import operator_numbers  # noqa: PLC0415

    criteria = Criteria(area_code, number_type, pattern, sms, mms)
    _check(criteria, quantity)
    found = in_transaction(lambda connection: operator_numbers.search(connection, criteria, quantity))
    rows = [
        {
            "number": each.number,
            "number_type": each.number_type,
            "sms_enabled": each.sms_enabled,
            "mms_enabled": each.mms_enabled,
            "price": format_amount(each.price_micros),
        }
        for each in found
    ]
    print_result(as_json, {"numbers": rows}, lambda: print_table(rows))


@app.command("list")
def list_all(
    org_id: OrganizationId,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=1_000_000, help="The most numbers to show.")] = 100,
    as_json: Json = False,
) -> None:
    """List the numbers of an organization, newest first. Released numbers are not included."""
    from server.store import operator_numbers  # noqa: PLC0415

    numbers, has_more = in_transaction(lambda connection: operator_numbers.list_numbers(connection, org_id, limit))
    rows = [
        {**each._asdict(), "created_at": format_time(each.created_at), "updated_at": format_time(each.updated_at)}
        for each in numbers
    ]
    print_result(as_json, {"numbers": rows, "has_more": has_more}, lambda: _print_numbers(rows, has_more))


@app.command("release")
def release(number: Number, as_json: Json = False) -> None:
    """Take a number from its organization, as if that had released it.

    Its settings are removed, and nothing is refunded.
    The number then rests: for some time only that organization can order it again.
    """
    from server.store import operator_numbers  # noqa: PLC0415

    rest_ms = settings().rest_ms
    released = in_transaction(lambda connection: operator_numbers.release(connection, number, rest_ms))
    available_at = format_time(released.available_at)
    result = {
        "number": number,
        "id": released.assignment_id,
        "organization_id": released.organization_id,
        "available_at": available_at,
    }
    text = (
        f"Organization {released.organization_id} does not have number {number} any more.\n"
        f"Until {available_at} only that organization can order it, and then every organization can."
    )
    print_result(as_json, result, text)


@app.command("history")
def history(number: Number, as_json: Json = False) -> None:
    """Show all that happened to a number, oldest first.

    Nothing is stored when a hold or a rest ends. These ends are computed, and marked so.
    What was archived is only in the file of the archive.
    """
    from server.store.history import history as read_history  # noqa: PLC0415

    found = in_transaction(lambda connection: read_history(connection, number))
    imported_at = format_time(found.imported_at)
    events = [{"at": imported_at, "kind": "imported"}, *map(as_json_event, found.events)]
    lines = [
        f"{imported_at or 'at an unknown time':20}  imported",
        *(f"{format_time(event.at)}  {sentence(event)}" for event in found.events),
    ]
    print_result(as_json, {"number": number, "events": events}, "\n".join(lines))


def _check(criteria: Criteria, quantity: int) -> None:
    """Raise OperatorError for criteria that the service refuses too."""
    from ordernumbers.v1.inventory_pb2 import SearchNumbersRequest  # noqa: PLC0415
    from server.rpc.validation import violations  # noqa: PLC0415

    try:
        request = SearchNumbersRequest(**criteria._asdict(), quantity=quantity)
    except ValueError:  # a number that the field cannot hold
        raise OperatorError("quantity must be 1..100") from None
    broken = violations(request)
    if broken:
        raise OperatorError(", ".join(f"{field} {rule}" for field, rule in broken.items()))


def _print_numbers(rows: list[dict[str, Any]], has_more: bool) -> None:
    columns = ("number", "id", "number_type", "label", "campaign_id", "created_at")
    print_table([{column: row[column] for column in columns} for row in rows])
    if has_more:
        print_text("There are more: --limit shows them.")
