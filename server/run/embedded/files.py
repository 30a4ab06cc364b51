"""Files and folders that are ours alone."""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from server.errors import OperatorError

SOCKET_PATH_BYTES_MAX = 103  # sun_path, less its zero: 107 on Linux, 103 on macOS


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open a file that only its owner may read, one that others could read before too. Raises OSError."""
    file = open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    os.fchmod(file.fileno(), 0o600)
    return file


def write_private(path: Path, text: str) -> None:
    """Write a file that only our user may read; whoever reads it meanwhile finds the old one or the new one, whole."""
    unfinished, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(unfinished, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def locked(file: IO[Any]) -> bool:
    """Take the lock on an open file, until it is closed or this process has died. False when another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def claimed(path: Path, in_use: str) -> IO[Any]:
    """The lock of a lock file, held until it is closed or this process has died. Raises OperatorError with
    the text `in_use` when another process has it."""
    try:
        claim = open_private(path, "a")
    except OSError as error:
        raise OperatorError(f"{path} cannot be opened: {error.strerror}; is it another user's?") from None
    if not locked(claim):
        claim.close()
        raise OperatorError(in_use)
    return claim


def socket_folder(
    data_dir: Path,
    socket_name: str,
    account: tuple[int, int] | None = None,
    enters: Callable[[Path], bool] = lambda _: True,
) -> Path:
    """A folder for Unix sockets, the same each time for a data folder: who can connect is who can enter.

    Only `account` (uid and gid, by default our own) may enter. `enters` says whether it can reach a place. The path of
    a socket named `socket_name` fits there. Raises OperatorError where there is no such place.
    """
    owner = account[0] if account else os.geteuid()
    name = f"ordernumbers-{owner}-{hashlib.sha256(bytes(data_dir.resolve())).hexdigest()[:12]}"
    places = [Path(place) / name for place in (tempfile.gettempdir(), "/tmp")]  # noqa: S108
    reachable = [place for place in places if _fits(place / socket_name) and enters(place.parent)]
    if not reachable:
        raise OperatorError(f"no folder for a socket: {places[0]} is too long, or user {owner} cannot enter it")
    folder = reachable[0]
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if account:
            os.chown(folder, *account)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner, os.geteuid()) or found.st_mode & 0o077:
        raise OperatorError(f"{folder} is not a folder that only user {owner} may enter; remove it")
    if found.st_uid != owner:  # a start killed between the two steps above
        os.chown(folder, *account or ())
    return folder


def _fits(socket_path: Path) -> bool:
    return len(bytes(socket_path)) <= SOCKET_PATH_BYTES_MAX
