"""The log of another process, kept short. That process only ever appends, so the file is emptied under its hands."""

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from server.run.embedded.files import open_private

LOG_BYTES_MAX = 10_000_000
LOOK_SECONDS = 1.0


class LogFile:
    """A file to append to. Once it is longer than LOG_BYTES_MAX its end moves to a second file, `….1`, and it is empty.

    So both together hold twice that, and what is written between two looks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = threading.Event()
        self._watch: threading.Thread | None = None

    def open(self) -> IO[Any]:
        """To append to; until `close` it is kept short."""
        file = open_private(self._path, "ab")
        self._done.clear()
        self._watch = threading.Thread(target=self._keep_short, daemon=True)
        self._watch.start()
        return file

    def close(self) -> None:
        if self._watch:
            self._done.set()
            self._watch.join()
            self._watch = None

    def last_lines(self, count: int) -> str:
        """The last lines, for whoever asks what went wrong."""
        return "\n".join(self._path.read_text(errors="replace").splitlines()[-count:])

    def _keep_short(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            with suppress(OSError):  # a full disk, say: the log goes on all the same
                if self._path.stat().st_size > LOG_BYTES_MAX:
                    self._rotate()

    def _rotate(self) -> None:
        """Lines that are written between the copy and the truncation are lost; a log may be so."""
        earlier = self._path.with_name(f"{self._path.name}.1")
        earlier.unlink(missing_ok=True)  # it may be root's, and we may not be
        with self._path.open("r+b") as log, open_private(earlier, "wb") as copy:
            log.seek(-LOG_BYTES_MAX, os.SEEK_END)
            shutil.copyfileobj(log, copy)
            log.truncate(0)
