"""The log file of another process, kept short while that process appends to it."""

import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from server.run.embedded.files import open_private

LOG_BYTES_MAX = 10_000_000
CHECK_SECONDS = 1.0


class LogFile:
    """A log file to append to. When it exceeds LOG_BYTES_MAX, its end moves to a second file, `….1`.

    Both files together hold twice that, plus what is written between two checks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> IO[Any]:
        """Open the file for appending, and keep it short until `close`."""
        file = open_private(self._path, "ab")
        self._closed.clear()
        self._thread = threading.Thread(target=self._keep_short, daemon=True)
        self._thread.start()
        return file

    def close(self) -> None:
        """Stop keeping the file short."""
        if self._thread:
            self._closed.set()
            self._thread.join()
            self._thread = None

    def last_lines(self, count: int) -> str:
        """Return the last lines, for an error message."""
        return "\n".join(self._path.read_text(errors="replace").splitlines()[-count:])

    def _keep_short(self) -> None:
        while not self._closed.wait(CHECK_SECONDS):
            with suppress(OSError):  # for example a full disk, which must not stop the checks
                if self._path.stat().st_size > LOG_BYTES_MAX:
                    self._rotate()

    def _rotate(self) -> None:
        earlier = self._path.with_name(f"{self._path.name}.1")
        # If root created it, another user cannot open it, but can remove it.
        earlier.unlink(missing_ok=True)
        with self._path.open("r+b") as log, open_private(earlier, "wb") as copy:
            log.seek(-LOG_BYTES_MAX, os.SEEK_END)
            shutil.copyfileobj(log, copy)
            # The writer has the file open, so it cannot be renamed. Lines written since the copy are lost.
            log.truncate(0)
