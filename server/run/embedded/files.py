"""Private files and folders, which only our user can open, and lock files."""

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

SOCKET_PATH_BYTES_MAX = 103  # the size of sun_path without its final zero: 107 on Linux, 103 on macOS


def open_private(path: Path, mode: str) -> IO[Any]:
    """Open a file, and make it readable only by its owner. Raises OSError."""
    file = open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
    # An existing file keeps its mode when it is opened. Earlier versions created files that others could read.
    os.fchmod(file.fileno(), 0o600)
    return file


def write_private(path: Path, text: str) -> None:
    """Write a file that only our user can read. A concurrent reader gets the whole old file or the whole new one."""
    unfinished, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(unfinished, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or this process dies. Return False if another process has the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_lock_file(path: Path, in_use: str) -> IO[Any]:
    """Open and lock a lock file. The lock lasts until the file is closed or this process dies.

    Raises OperatorError with the text `in_use` if another process has the lock.
    """
    try:
        file = open_private(path, "a")
    except OSError as error:
        raise OperatorError(f"cannot open {path}: {error.strerror}. Does it belong to another user?") from None
    if not try_lock(file):
        file.close()
        raise OperatorError(in_use)
    return file


def make_folder(folder: Path) -> None:
    """Create the folder if it does not exist. Raises OperatorError if we cannot create it or write to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot create the folder {folder}: {error.strerror}") from None
    try:
        # os.access would ignore capabilities, so we try it with a file.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OperatorError(f"cannot write to the folder {folder}: {error.strerror}") from None


def socket_folder(
    data_dir: Path,
    socket_name: str,
    user: tuple[int, int] | None = None,
    can_enter: Callable[[Path], bool] = lambda _: True,
) -> Path:
    """Return a folder for Unix sockets, always the same one for a data folder. It is created if it does not exist.

    Only `user` (uid and gid, by default our own) can enter it, and so only that user can connect. `can_enter` returns
    whether that user can enter a folder. The path of a socket named `socket_name` is short enough for the system.
    Raises OperatorError if there is no such folder.
    """
    owner = user[0] if user else os.geteuid()
    name = f"ordernumbers-{owner}-{hashlib.sha256(bytes(data_dir.resolve())).hexdigest()[:12]}"
    folders = [Path(place) / name for place in (tempfile.gettempdir(), "/tmp")]  # noqa: S108
    usable = [folder for folder in folders if _fits(folder / socket_name) and can_enter(folder.parent)]
    if not usable:
        raise OperatorError(
            f"no folder for a socket: the path {folders[0]} is too long, or user {owner} cannot reach it"
        )
    folder = usable[0]
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if user:
            os.chown(folder, *user)
    # Everyone can create folders in /tmp, so an existing one may be another user's trap.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (owner, os.geteuid()) or found.st_mode & 0o077:
        raise OperatorError(f"{folder} is not a folder that only user {owner} can enter. Remove it")
    if found.st_uid != owner:  # an earlier start was killed between mkdir and chown
        os.chown(folder, *user or ())
    return folder


def _fits(socket_path: Path) -> bool:
    return len(bytes(socket_path)) <= SOCKET_PATH_BYTES_MAX
