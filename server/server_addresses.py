"""Where the edge finds the workers: the setting `servers`, read."""

import re
from ipaddress import ip_address
from typing import NamedTuple

PORTS_MAX = 64
"""As many ports as an entry may name: one host has no more workers."""
_ENTRY = re.compile(
    r"(?P<dns>dns:)?(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]{1,253})):(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?"
)


class ServerAddress(NamedTuple):
    """A port of a host. A host that is no IP address is a name, and stands for all its addresses."""

    host: str
    port: int

    @property
    def is_name(self) -> bool:
        try:
            ip_address(self.host)
        except ValueError:
            return True
        return False


def read_servers(text: str) -> list[ServerAddress]:
    """The addresses in `host:port`, `host:port-port` or `dns:name:port`, separated by commas.

    Raises ValueError that quotes the first entry that is none of these.
    """
    found: dict[ServerAddress, None] = {}
    for entry in map(str.strip, text.split(",")):
        addresses = _addresses(entry)
        if not addresses:
            raise ValueError(f"{entry!r} is none of host:port, host:port-port and dns:name:port")
        for address in addresses:
            if address in found:
                raise ValueError(f"{entry!r} names port {address.port} of {address.host} again")
            found[address] = None
    return list(found)


def _addresses(entry: str) -> list[ServerAddress]:
    match = _ENTRY.fullmatch(entry)
    if not match:
        return []
    host, first = match["ipv6"] or match["host"], int(match["first"])
    last = int(match["last"] or first)
    addresses = [ServerAddress(host, port) for port in range(first, last + 1)]
    if not (1 <= first <= last <= 65535 and len(addresses) <= PORTS_MAX):
        return []
    # "1.2.3" would be a name that no resolver knows, and an address is no name.
    is_bad_address = (
        not addresses[0].is_name if match["dns"] else re.fullmatch(r"[\d.]+", host) and addresses[0].is_name
    )
    return [] if is_bad_address or (match["ipv6"] and addresses[0].is_name) else addresses
