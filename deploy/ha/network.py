"""The hosts' network on this machine: a namespace per host on a bridge, or addresses of the loopback interface.

Namespaces need root and iproute2. Only they can cut a host off.
"""

import ipaddress
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

import psutil

POLL_SECONDS = 0.05
PREFIX = "on"
"""How the names of our namespaces and interfaces begin. The process id of the command follows."""


class Network(Protocol):
    """Where hosts have addresses, and how their processes are found."""

    can_cut: bool
    """Whether `cut` works."""
    callers: str
    """The addresses, as a subnet, that connections to a host come from."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def address(self, host: str) -> str:
        """The host's IPv4 address."""
        ...

    def inside(self, host: str, command: Sequence[str]) -> list[str]:
        """The command line that runs a command on the host."""
        ...

    def pids(self, host: str, folder: Path) -> list[int]:
        """All processes that run on the host. `folder` is the one that only they have on their command lines."""
        ...

    def cut(self, host: str) -> None:
        """Drop every packet from and to the host, in silence."""
        ...

    def join(self, host: str) -> None:
        """Undo `cut`."""
        ...


def network(hosts: Sequence[str]) -> Network:
    """Return a network for hosts with these names: namespaces if they can be made here."""
    return Namespaces(hosts) if can_make_namespaces() else Loopback(hosts)


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"{PREFIX}{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        made = subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True, check=False).returncode == 0
        _ip("netns", "delete", name)
    return made


class Namespaces:
    """A namespace per host. A bridge on this machine connects them, and has the first address of the subnet."""

    can_cut = True

    def __init__(self, hosts: Sequence[str]) -> None:
        self.subnet = ipaddress.IPv4Network(f"10.{random.randint(160, 250)}.{random.randint(0, 255)}.0/24")
        self._hosts = list(hosts)
        self.callers = str(self.subnet)
        self.bridge = f"{PREFIX}{os.getpid()}"

    def __enter__(self) -> Self:
        _remove_leftovers()
        try:
            self._make()
        except BaseException:
            _remove(self.bridge)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _remove(self.bridge)

    def address(self, host: str) -> str:
        return str(self.subnet[11 + self._hosts.index(host)])

    def inside(self, host: str, command: Sequence[str]) -> list[str]:
        return [str(shutil.which("ip")), "netns", "exec", self.namespace(host), *command]

    def pids(self, host: str, folder: Path) -> list[int]:  # noqa: ARG002
        return _pids(self.namespace(host))

    def cut(self, host: str) -> None:
        # Its interface stays up, and its packets go nowhere: as if a switch had lost its port.
        _ip("link", "set", self.port(host), "nomaster")

    def join(self, host: str) -> None:
        _ip("link", "set", self.port(host), "master", self.bridge)

    def namespace(self, host: str) -> str:
        return f"{self.bridge}-{host}"

    def port(self, host: str) -> str:
        return f"{self.bridge}-{self._hosts.index(host)}"

    def _make(self) -> None:
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("address", "add", f"{self.subnet[1]}/{self.subnet.prefixlen}", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        for host in self._hosts:
            namespace, port = self.namespace(host), self.port(host)
            _ip("netns", "add", namespace)
            _ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("link", "set", port, "up", "master", self.bridge)
            address = f"{self.address(host)}/{self.subnet.prefixlen}"
            _ip("-n", namespace, "address", "add", address, "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", namespace, "link", "set", interface, "up")


class Loopback:
    """An address of the loopback interface per host. Nothing can be cut off."""

    can_cut = False
    callers = "127.0.0.0/8"

    def __init__(self, hosts: Sequence[str]) -> None:
        self.subnet = ipaddress.IPv4Network(f"127.{random.randint(1, 250)}.{random.randint(0, 255)}.0/24")
        self._hosts = list(hosts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def address(self, host: str) -> str:
        return str(self.subnet[11 + self._hosts.index(host)])

    def inside(self, host: str, command: Sequence[str]) -> list[str]:  # noqa: ARG002
        return list(command)

    def pids(self, host: str, folder: Path) -> list[int]:  # noqa: ARG002
        found: set[int] = set()
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(word == str(folder) or f"{folder}/" in word for word in process.cmdline()):
                    found |= {process.pid, *(child.pid for child in process.children(recursive=True))}
        return sorted(found - {os.getpid()})

    def cut(self, host: str) -> None:
        raise NotImplementedError("a host can be cut off only when it has a network namespace")

    join = cut


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line]


def _pids(namespace: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()]


def _remove_leftovers() -> None:
    """Remove what a command that was killed has left."""
    for namespace in _namespaces():
        bridge = namespace.partition("-")[0]
        owner = bridge.removeprefix(PREFIX)
        if bridge.startswith(PREFIX) and owner.isdigit() and not psutil.pid_exists(int(owner)):
            _remove(bridge)


def _remove(bridge: str) -> None:
    """Kill the processes of the bridge's namespaces, and remove these and the bridge."""
    for namespace in _namespaces():
        if namespace.startswith(f"{bridge}-"):
            while pids := _pids(namespace):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(POLL_SECONDS)
            _ip("netns", "delete", namespace)
    if Path(f"/sys/class/net/{bridge}").exists():
        _ip("link", "delete", bridge)
