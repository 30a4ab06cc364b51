"""How `number history` prints an event, as a sentence and as JSON."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from server.cli.output import format_time
from server.money import format_amount

if TYPE_CHECKING:
    from server.store.history import Event

NOTHING = "none"


def sentence(event: "Event") -> str:
    """What happened, and who did it."""
    by = {"organization": event.organization_id, "key": event.api_key_id, "request": event.request_id}
    known = ["computed"] if event.is_computed else [f"{who} {id_}" for who, id_ in by.items() if id_]
    what = WHAT[event.kind](event.details)
    return f"{what} ({', '.join(known)})" if known else what


def as_json_event(event: "Event") -> dict[str, Any]:
    """All that is known of the event."""
    return {
        "at": format_time(event.at),
        "kind": event.kind,
        "is_computed": event.is_computed,
        "organization_id": event.organization_id,
        "api_key_id": event.api_key_id,
        "request_id": event.request_id,
        **_printable(event.details),
    }


def _purchase(details: Mapping[str, Any]) -> str:
    printable = _printable(details)
    price = f"for {printable['price']}" if printable["price"] else "for an unknown price"
    routing = [f"{name} {value}" for name, value in printable["routing"].items() if value is not None]
    return ", ".join([f"assigned {price} by order {details['order_id']}", *routing])


def _changes(details: Mapping[str, Any]) -> str:
    """`price 1.00 → 2.00, label none → Sales`."""
    before, after = _printable(details["before"]), _printable(details["after"])
    return ", ".join(f"{name} {_value(before[name])} → {_value(after[name])}" for name in before)


def _value(value: object) -> str:
    return NOTHING if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _printable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Prices as decimals, times as texts. Also those of inner values."""
    printable: dict[str, Any] = {}
    for name, value in values.items():
        match value:
            case Mapping():
                printable[name] = _printable(value)
            case datetime():
                printable[name] = format_time(value)
            case int() if name == "price_micros":
                printable["price"] = format_amount(value)
            case _:
                printable[name.removesuffix("_micros")] = value
    return printable


WHAT: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "changed": lambda details: f"changed by an import: {_changes(details)}",
    "held": lambda details: f"held until {format_time(details['expires_at'])}",
    "hold_released": lambda _: "hold released",
    "hold_expired": lambda _: "hold expired",
    "assigned": _purchase,
    "routed": lambda details: f"routed: {_changes(details)}",
    "released": lambda details: f"released, and rests until {format_time(details['available_at'])}",
    "available": lambda _: "available again to every organization",
    "archived": lambda _: "what is older may be in the file of an archive",
}
"""By the kind of an event, what happened in words."""
