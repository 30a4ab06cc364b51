"""`make ha`: start all hosts on this machine, print what runs where, and end all of it at Ctrl-C."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.ha.cluster import DATABASES, EDGES, HOSTS, SERVERS, WORKER_PORT, Cluster
from deploy.ha.network import Namespaces, network
from server.errors import OperatorError
from server.run.embedded.demo import AREA_CODE, KEY_FILE, make_demo
from server.store.engine import admin_engine

RESTART_SECONDS = 30
"""How long after its programs have ended a host is started again, as its supervisor would do."""
WATCH_SECONDS = 1.0


def main() -> int:
    """Run until SIGINT or SIGTERM. Return the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT is ignored in a background job
        signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(_open_folder())
            hosts = stack.enter_context(network(HOSTS))
            print("Starting seven hosts. That takes about half a minute.", flush=True)
            cluster = stack.enter_context(Cluster(folder, hosts))
            make_demo(admin_engine(cluster.url), folder)
            print(_banner(cluster), flush=True)
            stack.callback(_ending)
            _watch(cluster)
    except KeyboardInterrupt:
        print("Ended. Nothing is left.", flush=True)
    except OperatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _ending() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave something behind
    print("\nEnding all hosts.", flush=True)


@contextmanager
def _open_folder() -> Iterator[Path]:
    """A temporary folder that the user of PostgreSQL can enter."""
    folder = Path(tempfile.mkdtemp(prefix="ordernumbers-ha-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(cluster: Cluster) -> None:
    """Say which host is the primary whenever that changes, and start again what has ended."""
    ended: dict[str, float] = {}
    primary = cluster.primary()
    while True:
        time.sleep(WATCH_SECONDS)
        for name, host in cluster.hosts.items():
            if host.is_complete:
                ended.pop(name, None)
            elif name not in ended:
                ended[name] = time.monotonic()
                _say(f"{name} has lost a program. It is started again in {RESTART_SECONDS} s")
            elif time.monotonic() - ended[name] > RESTART_SECONDS:
                del ended[name]
                host.start()
                _say(f"{name} is started again")
        if (now := cluster.primary()) is not primary:
            _say(f"the primary is {now.name}" if now else "there is no primary")
            primary = now


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def _banner(cluster: Cluster) -> str:
    hosts, folder = cluster.network, cluster.folder
    primary = cluster.primary()
    lines = [
        *(
            _line(name, hosts.address(name), f"etcd, Patroni, PostgreSQL{' (primary now)' * (primary is host)}")
            for name, host in cluster.hosts.items()
            if name in DATABASES
        ),
        *(_line(name, f"{hosts.address(name)}:{WORKER_PORT}", "ordernumbers serve") for name in SERVERS),
        *(_line(name, f"http://{edge}", "ordernumbers edge") for name, edge in zip(EDGES, cluster.edges, strict=True)),
    ]
    where = (
        "Each host is a network namespace." if hosts.can_cut else "Each host is an address of the loopback interface."
    )
    bin_ = Path(sys.executable).parent
    patronictl = f"{bin_}/patronictl -c {folder}/{DATABASES[0]}/patroni.yaml"
    return f"""
OrderNumbers is ready, on a PostgreSQL that survives the loss of a host. {where}

{chr(10).join(lines)}
  files and logs  {folder}

Order two numbers at one edge, and one at the other:

{_call(cluster.edges[0], folder, 0, 2)}
{_call(cluster.edges[1], folder, 2, 1)}

See who is the primary, and make another host the primary:

{patronictl} list
{patronictl} switchover --force ordernumbers

Lose a host, and cut one off. The first is started again after {RESTART_SECONDS} s:

{_losses(cluster)}
Is everything still right?

DATABASE_URL_FILE={folder}/database.url {bin_}/ordernumbers check

Press Ctrl-C to end all of it. What happens follows.
"""


def _line(name: str, address: str, what: str) -> str:
    return f"  {name:<8} {address:<28} {what}"


def _call(edge: str, folder: Path, first: int, count: int) -> str:
    numbers = ", ".join(f'"+1{AREA_CODE}555{100 + i:04}"' for i in range(first, first + count))
    return (
        f"""curl http://{edge}/v1/phone-numbers/orders -H "Authorization: Bearer $(cat {folder}/{KEY_FILE})" \\\n"""
        f"""  -H 'Content-Type: application/json' -d '{{"numbers": [{numbers}]}}'"""
    )


def _losses(cluster: Cluster) -> str:
    hosts = cluster.network
    if not isinstance(hosts, Namespaces):
        return f"pkill -9 -f {cluster.folder}/{DATABASES[0]}\n"
    name = DATABASES[0]
    port = hosts.port(DATABASES[1])
    return (
        f"ip netns pids {hosts.namespace(name)} | xargs kill -9\n"
        f"ip link set {port} nomaster        # {DATABASES[1]} is cut off\n"
        f"ip link set {port} master {hosts.bridge}    # and is back\n"
    )


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
