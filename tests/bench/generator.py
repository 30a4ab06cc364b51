"""The load generator: it sends prepared requests, a fixed number of them in flight, in a process of its own.

`run(load)` starts the process. Its CPU time is in every result. A request is one order. The clients of a group share
its orders, and send each one once. A response that is not a success counts as refused, and the first one is kept as a
sample. Whether it is a failure is for the caller of `run` to decide.
"""

import gc
import json
import resource
import selectors
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from tests.bench.connections import Connection, GrpcConnection, RestConnection, grpc_body, rest_body
from tests.bench.load import Client, Group, GroupResult, Load, Result

ROOT = Path(__file__).parents[2]
DRAIN_SECONDS_MAX = 30
POLL_SECONDS = 0.01


def run(load: Load, on_start: Callable[[], None] = lambda: None, on_stop: Callable[[], None] = lambda: None) -> Result:
    """Carry out a load. `on_start` and `on_stop` are called when measuring starts and stops. Raises RuntimeError."""
    command = [sys.executable, "-m", "tests.bench.generator"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin
        assert process.stdout
        json.dump(asdict(load), process.stdin)
        process.stdin.close()
        for line in process.stdout:
            match json.loads(line):
                case "start":
                    on_start()
                case "stop":
                    on_stop()
                case {"groups": groups, **rest}:
                    return Result(**rest, groups={name: GroupResult(**group) for name, group in groups.items()})
    raise RuntimeError(f"the load generator ended with status {process.returncode}")


# ---------------------------------------------------------------- the process


def main() -> None:
    """Read a load from stdin. Print when measuring starts, when it stops, and the result."""
    fields = json.load(sys.stdin)
    load = Load(**fields | {"clients": [Client(**client) for client in fields["clients"]]})
    open_, body = {"grpc": (GrpcConnection, grpc_body), "rest": (RestConnection, rest_body)}[load.transport]
    groups = {name: Group(list(map(body, orders))) for name, orders in load.orders.items()}
    connections: list[Connection] = [open_(client, groups[client.group]) for client in load.clients]
    # A pause for garbage collection would count as latency.
    gc.freeze()
    gc.disable()
    seconds, cpu_seconds = _drive(load, list(groups.values()), connections)
    result = Result(seconds, cpu_seconds, {name: group.result() for name, group in groups.items()})
    _print(asdict(result))


def _drive(load: Load, groups: list[Group], connections: list[Connection]) -> tuple[float, float]:
    """Send the load. Return the seconds measured, and the CPU seconds of this process in that time."""
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.fill()
    _receive_for(selector, groups, load.warm_seconds)
    start, cpu = _mark(groups, "start")
    _receive_for(selector, groups, load.seconds)
    stop, cpu_stop = _mark(groups, "stop")
    _drain(selector, groups, connections)
    return stop - start, cpu_stop - cpu


def _receive_for(selector: selectors.BaseSelector, groups: list[Group], seconds: float) -> None:
    until = monotonic() + seconds
    while monotonic() < until and not any(group.exhausted for group in groups):
        for key, _ in selector.select(POLL_SECONDS):
            key.data.receive()


def _mark(groups: list[Group], event: str) -> tuple[float, float]:
    for group in groups:
        group.new_tally()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _print(event)
    return monotonic(), usage.ru_utime + usage.ru_stime


def _drain(selector: selectors.BaseSelector, groups: list[Group], connections: list[Connection]) -> None:
    for group in groups:
        group.stopped = True
    # Orders that are under way may still be carried out, and the caller compares the counts with the database.
    until = monotonic() + DRAIN_SECONDS_MAX
    while waiting := sum(connection.waiting for connection in connections):
        if monotonic() > until:
            raise SystemExit(f"{waiting} orders had no response within {DRAIN_SECONDS_MAX} s")
        for key, _ in selector.select(POLL_SECONDS):
            key.data.receive()


def _print(message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
