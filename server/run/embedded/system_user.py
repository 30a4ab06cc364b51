"""Which system user runs PostgreSQL, and what that user can reach.

PostgreSQL refuses to run as root. If we are root, it runs as the user `postgres`, or else with a user id that nothing
else has. If we are not root, it runs as our own user. That case is `None` here.
"""

import grp
import os
import pwd
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from server.errors import OperatorError
from server.run.embedded.files import make_folder

PRIVATE_IDS = range(60_706, 61_184)  # systemd and Debian assign none of these, and they exist in containers too
SHARED_DIR = Path("/var/lib/ordernumbers")
"""Where root puts what the system user cannot reach elsewhere: binaries or data below a closed home."""


class SystemUser(NamedTuple):
    """A user and a group of the operating system, by id."""

    uid: int
    gid: int


def postgres_user(cluster: Path) -> SystemUser | None:
    """Return the user that runs PostgreSQL: the cluster's owner, else `postgres`, else a private id."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and not _needs_new_owner(cluster):
        owner = cluster.stat()
        return SystemUser(owner.st_uid, owner.st_gid)
    with suppress(KeyError):
        entry = pwd.getpwnam("postgres")
        return SystemUser(entry.pw_uid, entry.pw_gid)
    return next(SystemUser(number, number) for number in PRIVATE_IDS if not _has_name(number))


def initdb_user(user: SystemUser | None) -> SystemUser | None:
    """Return the user that runs initdb for `user`. Raises OperatorError if there is none.

    initdb works only as a user with a name. For a private id, it runs as another user in the group of that id.
    """
    if user is None or _has_name(user.uid):
        return user
    # Other processes may run as `nobody`, but none has this group. So they cannot enter the folder or trace initdb.
    for name in ("nobody", "daemon"):
        if uid := user_id(name):
            return SystemUser(uid, user.gid)
    raise OperatorError(
        "PostgreSQL does not run as root, and this machine has no user for it. Run `useradd --system postgres`"
    )


def user_id(name: str) -> int | None:
    """Return the id of the user with that name, or None if there is none."""
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return None


def give_folder(folder: Path, user: SystemUser | None) -> None:
    """Make `user` the owner of a folder and of everything in it."""
    if user is None or folder.stat().st_uid == user.uid:
        return
    # First the old owner must lose access. If we are killed before the end, root stays the owner of the folder.
    os.chown(folder, 0, 0)
    for _, folders, files, place in os.fwalk(folder):  # fwalk follows no symbolic link
        for name in (*folders, *files):
            os.chown(name, *user, dir_fd=place, follow_symlinks=False)
    os.chown(folder, *user)


def can_access(user: SystemUser | None, test: str, path: Path) -> bool:
    """Whether `user` passes `test -x PATH`, or another option of `test`."""
    if user is None:
        return True
    # The modes of the path alone do not decide this: its parents, ACLs and security modules count too.
    return run_as(user, ["test", test, str(path)]).returncode == 0


def run_as(user: SystemUser | None, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as `user`, and return its exit status and output."""
    identity: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    environment = clean_environment()
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, check=False, **identity)


def clean_environment() -> dict[str, str]:
    """Return an environment without our locale, PG* variables and secrets."""
    return {"PATH": os.defpath, "LC_ALL": "C"}


def shared_dir() -> Path:
    """Return a folder that all users can enter. It is created if it does not exist."""
    make_folder(SHARED_DIR)
    SHARED_DIR.chmod(0o755)
    return SHARED_DIR


def _needs_new_owner(cluster: Path) -> bool:
    """Whether the cluster's owner is not a user that may run PostgreSQL."""
    owner = cluster.stat().st_uid
    # root: `give_folder` was killed before its end. nobody: an earlier version, run by root, gave the cluster to a user
    # that other programs run as. An ordinary user's own cluster has the owner of the folder around it.
    return owner == 0 or (owner != cluster.parent.stat().st_uid and owner == user_id("nobody"))


def _has_name(number: int) -> bool:
    """Whether a user or a group has that id."""
    for lookup in (pwd.getpwuid, grp.getgrgid):
        with suppress(KeyError):
            lookup(number)
            return True
    return False
