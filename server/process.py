"""The server's processes: a parent that keeps its workers alive, and the worker itself (`python -m server.process 0`).

A worker's stdin is its lifeline: when it closes, the parent has died and the worker dies too. On its stdout a worker
says once that it serves, or why it cannot. Told by SIGTERM it drains. Each has a session of its own, so that Ctrl-C at
the terminal reaches the parent alone.
"""

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import IO, Protocol

import uvloop

from server.config import PREFIX, Settings
from server.config import settings as settings_of_environment
from server.errors import BadInput
from server.rpc import Server

log = logging.getLogger(__name__)

READY = b"ready\n"
GRPC_EXPERIMENTS = "-event_engine_listener"
"""gRPC core's older way to listen hands each event through fewer threads: 188 to 203 us of CPU a call instead of 216 to
276, of a server that does nothing. A gRPC that no longer knows the name says so in its log and goes on."""
GC_THRESHOLDS = (50_000, 20, 100)
"""Seldom: calls leave next to no cycles behind."""
START_SECONDS_MAX = 30
KILL_AFTER_SECONDS = 5
"""How much longer than its drain may take a worker is waited for."""
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 10.0
STEADY_SECONDS = 5
"""What ran that long before it ended is started again at once."""
INSIST_SECONDS = 1.0
"""A signal to stop that comes again so much later means now."""


# ---------------------------------------------------------------- the parent


def serve(settings: Settings, database_url: str) -> None:
    """Run the workers until SIGTERM or SIGINT, then drain them all at once. SIGHUP replaces one after the other.

    Raises BadInput when a worker cannot start.
    """
    log_as_json()
    asyncio.run(until_stopped(_serve(settings, database_url)))


async def _serve(settings: Settings, database_url: str) -> None:
    renew = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew.set)
    async with kept(workers(settings, database_url)) as keepers:
        log.info("serving on %s", ", ".join(f"{settings.grpc_bind}:{port}" for port in settings.grpc_ports))
        await _renew(keepers, renew, settings.drain_seconds)


def workers(settings: Settings, database_url: str) -> list["Worker"]:
    """The workers of the settings, one for each port."""
    return [Worker(index, settings, database_url) for index in range(settings.workers)]


async def _renew(keepers: "Sequence[Keeper]", renew: asyncio.Event, pause_seconds: float) -> None:
    """For ever: at each order replace the workers one by one, so that the others serve meanwhile."""
    while True:
        await renew.wait()
        renew.clear()
        try:
            for keeper in keepers:
                await keeper.replace()
                await asyncio.sleep(pause_seconds)  # until the edge knows that this one serves again
            log.info("every worker is a new one")
        except BadInput as error:
            log.error("%s; the others stay as they are", error)


async def until_stopped(work: Coroutine[None, None, None]) -> None:
    """Do the work until it ends or SIGTERM or SIGINT comes; then it is cancelled and its clean-up waited for.

    A second signal, unless it comes with the first, ends this process on the spot.
    """
    task, first_at = asyncio.create_task(work), 0.0

    def told() -> None:
        nonlocal first_at
        if not first_at:
            first_at = time.monotonic()
            task.cancel()
        elif time.monotonic() - first_at > INSIST_SECONDS:
            os._exit(1)  # every process of ours notices and ends too

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told)
    with suppress(asyncio.CancelledError):
        await task


# ---------------------------------------------------------------- keeping processes alive


class Part(Protocol):
    """A process of the whole, which can be started again."""

    name: str

    async def start(self) -> None:
        """Return when it does its work. Raises BadInput saying why it does not."""

    async def wait(self) -> int:
        """Its exit status, when it has ended; at once if it never ran."""

    async def stop(self) -> None:
        """End it in an orderly way, and in bounded time. Nothing if it does not run."""


class Keeper:
    """Starts a part again when it ends by itself: at once, then after ever longer pauses."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._part.start()
        self._keeping = asyncio.create_task(self._keep())

    async def replace(self) -> None:
        """Stop, then start; raises BadInput as `start` does, and then goes on trying."""
        await self.stop()
        try:
            await self._part.start()
        finally:
            self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        await self._part.stop()

    async def _keep(self) -> None:
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            began = time.monotonic()
            status = await self._part.wait()
            steady = time.monotonic() - began > STEADY_SECONDS
            pause_seconds = PAUSE_SECONDS_MIN if steady else min(2 * pause_seconds, PAUSE_SECONDS_MAX)
            log.error("%s ended by itself, with status %d; starting it again", self._part.name, status)
            await asyncio.sleep(pause_seconds)
            try:
                await self._part.start()
            except (BadInput, OSError) as error:
                log.error("%s", error)


@asynccontextmanager
async def kept(parts: Sequence[Part]) -> AsyncIterator[list[Keeper]]:
    """The parts, started and kept alive; in the end stopped, all at once. Raises BadInput when one cannot start."""
    keepers = [Keeper(part) for part in parts]
    try:
        started = await asyncio.gather(*(keeper.start() for keeper in keepers), return_exceptions=True)
        for failure in filter(None, started):
            raise failure
        yield keepers
    finally:
        await asyncio.gather(*(keeper.stop() for keeper in keepers))


# ---------------------------------------------------------------- a worker, as its parent sees it


class Worker:
    """One worker process."""

    def __init__(self, index: int, settings: Settings, database_url: str) -> None:
        self.name = f"worker {index}"
        self._command = [sys.executable, "-P", "-m", "server.process", str(index)]
        # Not among the arguments, which everyone on the machine can read: the database's URL may hold a password.
        environment = environment_of(settings.model_copy(update={"database_url": database_url}))
        self._environment = {"GRPC_EXPERIMENTS": GRPC_EXPERIMENTS} | environment
        self._stop_seconds_max = settings.drain_seconds + settings.deadline_seconds_max + KILL_AFTER_SECONDS
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        answer = await self._answer(self._process)
        if answer != READY:
            await self._kill(self._process)
            raise BadInput(f"{self.name} cannot start: {answer.decode().strip() or 'see its error above'}")

    async def wait(self) -> int:
        return await self._process.wait() if self._process else 0

    async def stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            with suppress(ProcessLookupError):
                process.terminate()
            await asyncio.wait_for(process.wait(), self._stop_seconds_max)
        except TimeoutError:
            log.error("%s did not drain in %g s; it is killed", self.name, self._stop_seconds_max)
            await self._kill(process)

    async def _answer(self, process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None  # noqa: S101
        try:
            return await asyncio.wait_for(process.stdout.readline(), START_SECONDS_MAX)
        except TimeoutError:
            return b"it took too long"

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def environment_of(settings: Settings) -> dict[str, str]:
    """Our own environment, but with these settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "DATABASE_URL"))}
    said = settings.model_dump(mode="json", exclude_none=True)
    names = {name: PREFIX + name.upper() for name in said} | {"database_url": "DATABASE_URL"}
    return inherited | {names[name]: str(value) for name, value in said.items()}


# ---------------------------------------------------------------- the worker itself


def main(index: int) -> None:
    """Be worker `index` of the environment's settings."""
    report = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever else is printed belongs to the logs
    threading.Thread(target=_die_with_parent, daemon=True).start()
    log_as_json()
    wake_without_haste()
    uvloop.run(until_stopped(_work(index, report)))


async def _work(index: int, report: IO[bytes]) -> None:
    try:
        server = await _started(index)
    except (BadInput, OSError) as error:
        report.write(f"{error}\n".encode())
        return
    gc.freeze()  # what has been loaded so far stays: no collection shall walk through it
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        report.write(READY)
        await server.ended()
        log.error("gRPC has ended its server, and so this worker ends")
    finally:
        await server.drain()


async def _started(index: int) -> Server:
    settings = settings_of_environment()
    if settings.database_url is None:
        raise BadInput("DATABASE_URL is not set")
    return await Server.start(settings, settings.database_url, settings.grpc_ports[index])


def wake_without_haste() -> None:
    """Let no thread of this process push another off its core by waking up (Linux's SCHED_BATCH; elsewhere nothing).

    gRPC's threads and ours wake each other several times a call; so they find more to do each time. CPU of a server
    that does nothing: 190 and 179 us a call instead of 230 and 215; of an order, 356 and 425 us instead of 429 and 453.
    """
    with suppress(AttributeError, OSError):  # not Linux; forbidden here
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _die_with_parent() -> None:
    """A thread of its own, and no farewell: it must work however busy the event loop is."""
    while os.read(0, 512):
        pass
    os._exit(1)


# ---------------------------------------------------------------- logs


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def _is_no_value_of_a_caller(record: logging.LogRecord) -> bool:
    """False of what gRPC logs of a header that is not UTF-8: the value itself, which may be a key."""
    return not (record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError))


def log_as_json() -> None:
    """Messages of this process go to stderr, one JSON line each, as the lines of the calls do."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter())
    handler.addFilter(_is_no_value_of_a_caller)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("server").setLevel(logging.INFO)


if __name__ == "__main__":
    main(int(sys.argv[1]))
