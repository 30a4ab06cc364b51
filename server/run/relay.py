"""Passes on what child processes print, so that every line on our stderr is one JSON line.

gRPC core, Envoy and a crashing Python print plain text, and a process that is killed leaves a part of a line. A worker
writes its own lines, which are JSON, past us: 5,000 of them per second took 6 % of all CPU here.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from threading import Thread

import orjson

from server.log import entry, pieces

PIPE_BYTES = 2**20
READ_BYTES = 65536
PAUSE_SECONDS = 0.02
"""After lines were read, so that more of them come together. To wake up for each few of them would cost more."""
TEXT_BYTES_MAX = 600
"""Longer lines of plain text become several lines. A byte may be six in JSON. So each is shorter than PIPE_BUF."""
END_SECONDS_MAX = 1.0
"""How long we wait for the last lines of a process that has exited."""
_CORE = re.compile(rb"([IWEF])\d{4} \d\d:|([IWEF])\d{4} \d+ ")
_LEVELS = {b"I": "INFO", b"W": "WARNING", b"E": "ERROR", b"F": "CRITICAL"}


class Relay:
    """A pipe for the output of one child process. A thread passes on its lines, until all its writers have gone.

    A thread, and no task: a reader of our stderr that stops reading must not stop the event loop too.
    """

    def __init__(self, name: str, *, prints_json: bool = False) -> None:
        """`prints_json` if every whole line is known to be JSON, as in Envoy's access log."""
        self._name = name
        self._prints_json = prints_json
        read_end, self.write_end = os.pipe()
        with suppress(OSError):  # the limit for this user may be lower. Then a busy process waits for us sooner
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._thread = Thread(target=self._pass_on, args=(read_end,), name=f"log of {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close our copy of `write_end`. The child process has its own by now."""
        os.close(self.write_end)

    def wait(self) -> None:
        """Return when the last line was passed on, or after a short time: a grandchild may still have the pipe."""
        self._thread.join(END_SECONDS_MAX)

    def _pass_on(self, read_end: int) -> None:
        rest = b""
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            while data := pipe.read(READ_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                while len(rest) > READ_BYTES:
                    lines, rest = [*lines, rest[:READ_BYTES]], rest[READ_BYTES:]
                _write(lines if self._prints_json else json_lines(lines, self._name))
                if len(data) < READ_BYTES:  # else there is more already
                    time.sleep(PAUSE_SECONDS)
        _write(json_lines([rest], self._name))


def json_lines(lines: Iterable[bytes], process: str) -> Iterable[bytes]:
    """These lines, with those that are no JSON object as the message of one. Empty lines are left out."""
    for line in lines:
        if _is_json_object(line):
            yield line
        elif text := line.strip():
            core = _CORE.match(text)
            level = _LEVELS[core[1] or core[2]] if core else "WARNING"
            for start in range(0, len(text), TEXT_BYTES_MAX):
                part = text[start : start + TEXT_BYTES_MAX].decode(errors="replace")
                yield entry(level, part, process=process).encode()


def _is_json_object(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _write(lines: Iterable[bytes]) -> None:
    with suppress(OSError):  # without a reader of our stderr, the child process must still be able to print
        for piece in pieces(b"".join(line + b"\n" for line in lines)):
            os.write(2, piece)
