"""Creating a PostgreSQL cluster, which is the folder with its databases."""

import os
import shutil
import tempfile
from pathlib import Path

from server.errors import OperatorError
from server.run.embedded.system_user import SystemUser, can_access, give_folder, initdb_user, run_as, shared_dir

SUPERUSER = "ordernumbers"


def make_cluster(cluster: Path, binaries: Path, user: SystemUser | None, *, durable: bool) -> None:
    """Create the cluster, owned by `user`. If we are killed meanwhile, no cluster exists afterwards."""
    maker = initdb_user(user)
    new = private_folder(cluster.with_name(f"{cluster.name}.new"), maker)
    if not can_access(maker, "-w", new):
        # The user cannot reach our data folder. The cluster lies in the shared folder, and our folder links to it.
        shutil.rmtree(new.parent)
        elsewhere = Path(tempfile.mkdtemp(prefix=f"{cluster.parent.parent.name}-", dir=shared_dir()))
        elsewhere.chmod(0o711)
        new = private_folder(elsewhere / new.parent.name, maker)
    _initdb(new, binaries, maker, durable=durable)
    give_folder(new, user)
    created = new.rename(new.parent.with_name(cluster.name))
    new.parent.rmdir()
    if created != cluster:
        cluster.unlink(missing_ok=True)  # a link to a cluster that no longer exists
        cluster.symlink_to(created)


def private_folder(place: Path, user: SystemUser | None) -> Path:
    """Create `place` and return a new, empty folder in it, which only `user` can open."""
    if place.exists():
        shutil.rmtree(place)
    folder = place / "data"
    place.mkdir(mode=0o700)
    folder.mkdir(mode=0o700)
    if user:
        os.chown(folder, *user)
        # Other processes may have the user's id, but only ours have the group's. So only they can enter `place`.
        os.chown(place, 0, user.gid)
        place.chmod(0o710)
    return folder


def _initdb(folder: Path, binaries: Path, user: SystemUser | None, *, durable: bool) -> None:
    # The built-in provider sorts by code point, independent of the machine's locales.
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    # "trust" asks for no password: only `user` can enter the folder of the socket.
    options = [f"--username={SUPERUSER}", "--auth=trust", "--no-instructions", *locale]
    options += [] if durable else ["--no-sync"]
    done = run_as(user, [str(binaries / "initdb"), f"--pgdata={folder}", *options])
    if done.returncode:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise OperatorError(f"PostgreSQL cannot create its files in {folder}: {done.stderr.strip()}")
