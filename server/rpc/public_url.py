"""Decides whether the host of a URL is public: whether the whole internet can reach it under that name."""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*", re.ASCII)
_PORT = re.compile(r"(:[0-9]{1,5})?", re.ASCII)
# Last labels of names that are not in the public DNS. Each private network decides what such a name means.
# example.com, .net and .org are special-use names too, but they resolve. Documents and tests use them in orders.
_PRIVATE_TLDS = {
    *("alt", "example", "invalid", "local", "localhost", "onion", "test"),  # RFC 6761, 6762, 7686, 9476
    "arpa",  # RFC 3172: for infrastructure, such as home.arpa, resolver.arpa and the reverse zones
    "internal",  # ICANN, 2024: for private use
    *("corp", "home", "intranet", "lan", "mail", "private"),  # RFC 6762, appendix G, and ICANN, 2018: never delegated
    *("consul", "default", "localdomain", "svc"),  # private names by default in Consul, Kubernetes and Linux
}
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
# Python's `is_global` accepts these, in some versions or in all. Some are for protocols, clouds, multicast or
# documents. The others are IPv6 addresses that lead to an IPv4 address of the sender's choice: NAT64, Teredo, 6to4.
_NOT_GLOBAL: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = (
    *map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")),
    *map(ipaddress.IPv6Network, ("2001::/23", "2002::/16", "3fff::/20")),
)


def is_public(url: str) -> bool:
    """Whether the host of a well-formed https:// URL is public.

    A public host is a DNS name or an IP address:

    - The name has two labels or more. It is not a special-use name (RFC 6761). No resolver reads it as an address
      (RFC 3986, section 3.2.2, and the host parser of the WHATWG URL standard).
    - The address is global, and written in its canonical form.

    A public name can still resolve to a private address. The system that calls the URL must check the address.
    """
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
    if _NUMERIC_LABEL.fullmatch(_last_label(host)):  # browsers and resolvers read such a name as an IPv4 address
        return _is_public_ipv4(host)
    return _is_public_name(host)


def _last_label(host: str) -> str:
    return host.removesuffix(".").rpartition(".")[2].lower()


def _is_public_name(host: str) -> bool:
    name = host.removesuffix(".")
    labels = name.split(".")
    is_well_formed = len(labels) > 1 and len(name) <= 253 and all(map(_LABEL.fullmatch, labels))
    return is_well_formed and _last_label(host) not in _PRIVATE_TLDS


def _is_public_ipv4(text: str) -> bool:
    return _is_global(ipaddress.IPv4Address(text))  # ValueError unless four decimals without leading zeros


def _is_public_ipv6(text: str) -> bool:
    address = ipaddress.IPv6Address(text)
    return str(address) == text and address in _GLOBAL_IPV6 and _is_global(address)


def _is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not any(address in network for network in _NOT_GLOBAL)
