"""A base backup and archived WAL, restored to a moment: what docs/operations.md tells operators to do."""

import os
import subprocess

import pytest

from server.run.embedded import postgres as embedded
from server.run.embedded.binaries import binaries_folder
from server.run.embedded.postgres import EmbeddedPostgres
from server.run.embedded.system_user import postgres_user
from server.store import migrations
from server.store.engine import admin_engine
from tests.support.batcher import outcome, run
from tests.support.clusters import cluster_of, value
from tests.support.customer import Customer
from tests.support.orders import order_of
from tests.support.stack import COMMAND, wait_until

ORDERS = 20


@pytest.fixture
def archive(open_path):
    folder = open_path / "archive"
    folder.mkdir()
    folder.chmod(0o777)  # PostgreSQL may run as another user
    return folder


@pytest.fixture
def archiving(open_path, archive, monkeypatch):
    """A database that copies its WAL into the archive."""
    copy = f"test ! -f {archive}/%f && cp %p {archive}/%f"
    settings = {"wal_level": "replica", "max_wal_senders": "4", "archive_mode": "on", "archive_command": copy}
    for name, setting in settings.items():
        monkeypatch.setitem(embedded.SETTINGS, name, setting)
    with EmbeddedPostgres(open_path / "data") as postgres:
        migrations.upgrade(admin_engine(postgres.url()))
        yield postgres


def sell(url, customer, numbers):
    async def work(batcher):
        return [await outcome(batcher, order_of(customer, number)) for number in numbers]

    assert set(run(url, work)) == {"PLACED"}


def back_up(postgres, open_path, folder):
    binaries = binaries_folder(postgres_user(cluster_of(open_path / "data")))
    copy = ["--checkpoint=fast", "--wal-method=stream", f"--pgdata={folder}"]
    subprocess.run([str(binaries / "pg_basebackup"), f"--dbname={postgres.url()}", *copy], check=True)
    subprocess.run([str(binaries / "pg_verifybackup"), str(folder)], check=True)


def archive_all(url):
    """Wait until the WAL up to now is in the archive."""
    segment = value(url, "SELECT pg_walfile_name(pg_switch_wal())")
    wait_until(lambda: (value(url, "SELECT last_archived_wal FROM pg_stat_archiver") or "") >= segment)


def test_a_backup_is_restored_to_a_moment(open_path, archiving, archive, monkeypatch):
    customer = Customer.open(admin_engine(archiving.url()))
    before, since, mistaken = (customer.numbers(ORDERS) for _ in range(3))
    sell(archiving.url(), customer, before)
    restored = open_path / "restored"
    restored.mkdir()
    cluster = restored / cluster_of(open_path / "data").name
    back_up(archiving, open_path, cluster)
    sell(archiving.url(), customer, since)
    moment = value(archiving.url(), "SELECT clock_timestamp()")
    sell(archiving.url(), customer, mistaken)
    archive_all(archiving.url())
    archiving.stop()

    with (cluster / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"restore_command = 'cp {archive}/%f %p'\n")
        settings.write(f"recovery_target_time = '{moment.isoformat()}'\n")
        settings.write("recovery_target_action = 'promote'\n")
    (cluster / "recovery.signal").touch()
    monkeypatch.setitem(embedded.SETTINGS, "archive_mode", "off")
    with EmbeddedPostgres(restored) as postgres:
        wait_until(lambda: not value(postgres.url(), "SELECT pg_is_in_recovery()"))
        there = Customer(admin_engine(postgres.url()), customer.id, customer.key, customer.key_id)
        assert there.owned() == {*before, *since}
        checked = subprocess.run(
            [COMMAND, "check"],
            env={**os.environ, "DATABASE_URL": postgres.url()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout) == (0, "All invariants hold.\n"), checked.stderr
        sell(postgres.url(), there, mistaken)
        assert there.owned() == {*before, *since, *mistaken}
