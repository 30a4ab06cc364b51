"""The file of an archive: gzip, one JSON object per line. What was written is on disk before the write returns."""

import gzip
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from server.errors import OperatorError


class ArchiveFile:
    """A new file. It removes itself if nothing was written. Raises OperatorError if it cannot be made or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._length = 0
        try:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                # The rows have URLs and labels of customers, so only the file's owner may read them.
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                # Otherwise a crash of the machine may lose the file's name, with all that is in it.
                os.fsync(folder)
            finally:
                os.close(folder)
        except FileExistsError:
            raise OperatorError(f"{path} exists already. Each archive needs a new file") from None
        except OSError as error:
            raise OperatorError(f"cannot write {path}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        os.close(self._file)
        if not self._length:
            self.path.unlink()

    def write(self, lines: Iterable[str]) -> None:
        """Append the lines, and wait until they are on disk."""
        # A gzip member of its own: after a crash only the last one can be incomplete.
        member = gzip.compress("".join(f"{line}\n" for line in lines).encode())
        try:
            rest = memoryview(member)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
            self._length += len(member)
        except OSError as error:
            raise OperatorError(f"cannot write {self.path}: {error.strerror}") from None
        finally:
            # Remove a part of a member, also after Ctrl-C, so that the file can be read to its end.
            os.ftruncate(self._file, self._length)
