"""Whether a request keeps the contract's rules: those written in the protos, checked by protovalidate, and the one they
cannot say, that a URL's host is public."""

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

import protovalidate
from google.protobuf.message import Message

from ordernumbers.v1.phone_number_service_pb2 import OrderNumbersRequest
from server.config import NUMBERS_PER_ORDER_MAX
from server.errors import Code, Refusal

NOT_PUBLIC = "must be a public https:// URL"
NOT_A_KEY = "must be one of 1..255 visible ASCII characters"

_BARE_KEY = re.compile(r'(?!")[!-~]{1,255}', re.ASCII)
_QUOTED_KEY = re.compile(r'"((?:[!#-\[\]-~]|\\["\\]){1,255})"', re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*", re.ASCII)
# Last labels of names that the public DNS does not hold: what they mean is up to the network of whoever looks them up.
# example.com, .net and .org are special-use names too, but resolve as any other: documents and tests order with them.
_NOT_PUBLIC_TLDS = {
    *("alt", "example", "invalid", "local", "localhost", "onion", "test"),  # RFC 6761, 6762, 7686, 9476
    "arpa",  # RFC 3172: for infrastructure. home.arpa (RFC 8375), resolver.arpa (RFC 9462), the reverse zones
    "internal",  # ICANN, 2024: for private use
    *("corp", "home", "intranet", "lan", "mail", "private"),  # RFC 6762, appendix G; ICANN, 2018: never delegated
    *("consul", "default", "localdomain", "svc"),  # in use inside by default: Consul, Kubernetes, Linux
}
_PORT = re.compile(r"(:[0-9]{1,5})?", re.ASCII)
# What `is_global` lets through, in some Python or in all: addresses that a cloud or a protocol has taken, multicast,
# documentation, and IPv6 that leads to an IPv4 address of the sender's choice (NAT64, Teredo, 6to4).
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_EXCEPTIONS: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = (
    *map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")),
    *map(ipaddress.IPv6Network, ("2001::/23", "2002::/16", "3fff::/20")),
)

_validator = protovalidate.Validator()


def validate(request: Message, idempotency_keys: Sequence[str | bytes] = ()) -> str | None:
    """The idempotency key among the values that the call gave, if it gave any.

    Raises VALIDATION_FAILED with every field at fault and the first rule it breaks, all at once.
    """
    details = _order_violations(request) if isinstance(request, OrderNumbersRequest) else _violations(request)
    key = _idempotency_key(idempotency_keys)
    if idempotency_keys and key is None:
        details["idempotency-key"] = NOT_A_KEY
    if details:
        raise Refusal(Code.VALIDATION_FAILED, details=details)
    return key


def _idempotency_key(values: Sequence[str | bytes]) -> str | None:
    """The one well-formed key: bare, or quoted as RFC 8941 has strings."""
    if len(values) != 1 or not isinstance(values[0], str):
        return None
    quoted = _QUOTED_KEY.fullmatch(values[0])
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    return values[0] if _BARE_KEY.fullmatch(values[0]) else None


def _order_violations(request: OrderNumbersRequest) -> dict[str, str]:
    if len(request.numbers) > NUMBERS_PER_ORDER_MAX:  # say so, without a look at each of perhaps many thousands
        request = OrderNumbersRequest.FromString(request.SerializeToString())
        del request.numbers[NUMBERS_PER_ORDER_MAX + 1 :]
        details = {field: rule for field, rule in _violations(request).items() if not field.startswith("numbers[")}
    else:
        details = _violations(request)
    urls = {"inbound_url": request.inbound_url, "status_url": request.status_url}
    for field, url in urls.items():
        if url and field not in details and not is_public(url):
            details[field] = NOT_PUBLIC
    return details


def _violations(request: Message) -> dict[str, str]:
    details: dict[str, str] = {}
    for violation in _validator.collect_violations(request):
        details.setdefault(_path(violation), violation.proto.message)
    return details


def _path(violation: protovalidate.Violation) -> str:
    """`numbers[1]`: where in the request a rule is broken."""
    path = ""
    for element in violation.proto.field.elements if violation.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path


def is_public(url: str) -> bool:
    """Whether the host of an https:// URL is one that the whole internet can reach by that name: a DNS name of two
    labels or more that no resolver takes for an address (RFC 3986, WHATWG), none of the special-use names (RFC 6761),
    or a global IP address written canonically. A public name may still lead to a private address: whoever calls the
    URL must look at the address."""
    try:
        parts = urlsplit(url)
        return _is_port(parts) and _is_public_host(_host(parts))
    except ValueError:
        return False


def _host(parts: SplitResult) -> str:
    return parts.netloc[: parts.netloc.index("]") + 1] if "[" in parts.netloc else parts.netloc.partition(":")[0]


def _is_port(parts: SplitResult) -> bool:
    rest = parts.netloc.removeprefix(_host(parts))
    return _PORT.fullmatch(rest) is not None and parts.port != 0  # .port raises ValueError beyond 65535


def _is_public_host(host: str) -> bool:
    if host.startswith("["):
        return _is_public_ipv6(host[1:-1])
    name = host.removesuffix(".")
    labels = name.split(".")
    last = labels[-1].lower()
    if not _NUMERIC_LABEL.fullmatch(last):
        well_formed = len(labels) > 1 and len(name) <= 253 and all(map(_LABEL.fullmatch, labels))
        return well_formed and last not in _NOT_PUBLIC_TLDS
    return _is_public_ipv4(host)


def _is_public_ipv4(text: str) -> bool:
    return _is_global(ipaddress.IPv4Address(text))  # four decimal numbers without leading zeros, or ValueError


def _is_public_ipv6(text: str) -> bool:
    address = ipaddress.IPv6Address(text)
    return str(address) == text and address in _GLOBAL_IPV6 and _is_global(address)


def _is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not any(address in network for network in _EXCEPTIONS)
