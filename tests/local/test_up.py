"""`ordernumbers up` as an operator uses it: start, pasted example calls, errors, stop, restart."""

import json
import os
import signal
import socket
import stat
from urllib.request import urlopen

import httpx
import psycopg
import pytest

from server.run.embedded.postgres import EmbeddedPostgres
from server.store import migrations
from server.store.engine import admin_engine
from tests.support.databases import open_folder
from tests.support.stack import Up, gone, local_settings, wait_until


def start(open_path, name="one", **settings):
    folder = open_path / name
    return Up(local_settings(folder / ".data", **settings), folder)


@pytest.fixture(scope="module")
def up():
    """A running `ordernumbers up` for several tests, none of which stops it."""
    with open_folder() as folder, start(folder, workers=1) as up:
        yield up.until_ready()


# ---------------------------------------------------------------- a first start


def numbers_in(response):
    return [row["number"] for row in response["data"]]


def is_a_sale(responses):
    """Whether the search and the order that were pasted have both succeeded."""
    return [response["success"] for response in responses] == [True, True]


def test_the_calls_of_the_banner_order_what_its_search_returned(open_path):
    with start(open_path).until_ready() as up:
        for command, position in (("curl", 0), ("buf", 1)):
            search, order = up.pasted(command)
            assert numbers_in(order) == [numbers_in(search)[position]]
        ids = json.loads((up.settings.data_dir / "demo.json").read_text())
        demo = up.command("org", "show", ids["organization_id"])
        assert (demo["name"], demo["balance"], demo["numbers"]) == ("Demo", "9998.00", 2)
        assert up.command("check") == {"ok": True, "violations": []}


def test_the_calls_of_the_banner_can_be_pasted_again(up):
    (first, again) = (numbers_in(up.pasted("curl")[1]) for _ in range(2))
    assert first != again


def test_it_is_healthy_when_it_prints_that_it_is_ready(up):
    assert urlopen(f"http://127.0.0.1:{up.settings.rest_port}/healthz").status == 200


def test_the_demo_key_is_only_in_its_file(up):
    key_file = up.settings.data_dir / "demo.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = key_file.read_text().strip()
    up.pasted("curl")
    seen = [path for path in up.folder.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert seen == [key_file]
    assert key not in " ".join(word for process in up.processes() for word in process.cmdline())


def test_the_database_url_is_on_no_command_line(service):
    words = [word for process in service.up.processes() for word in process.cmdline()]
    assert service.database.url not in " ".join(words)


def test_ctrl_c_at_the_terminal_reaches_only_up_itself(up):
    sessions = {os.getsid(process.pid) for process in up.processes()[1:]}
    assert os.getsid(up.process.pid) not in sessions


# ---------------------------------------------------------------- stop, and a second start


def test_all_processes_are_gone_after_a_stop_and_a_second_start_finds_the_data(open_path):
    with start(open_path).until_ready() as up:
        assert is_a_sale(up.pasted("curl"))
        processes = up.processes()
        assert len(processes) > 8
        assert up.stop(signal.SIGTERM) == 0
        assert gone(processes)
    with Up(up.settings, up.folder).until_ready() as second:
        assert is_a_sale(second.pasted("curl"))
        assert second.command("inventory", "stats")["local"]["assigned"] == 2
        assert second.stop(signal.SIGINT) == 0


def test_no_demo_creates_no_demo(open_path):
    settings = local_settings(open_path / ".data", workers=1)
    with Up(settings, open_path, "--no-demo").until_ready() as up:
        assert up.command("inventory", "stats")["local"]["available"] == 0
        assert not (settings.data_dir / "demo.key").exists()


# ---------------------------------------------------------------- on the operator's own database


def test_the_operators_own_database_gets_a_migration_or_a_demo_only_on_request(postgres, open_path):
    url = _empty(postgres, "own")
    settings = local_settings(open_path / ".data", database_url=url, workers=1)
    plain = Up(settings, open_path)
    assert plain.until_ended() == 1
    assert "the database does not have this version's schema: run `ordernumbers db upgrade`" in plain.logs
    assert migrations.current(admin_engine(url)) is None
    with Up(settings, open_path, "--migrate").until_ready() as migrated:
        assert "Demo skipped, because DATABASE_URL is set" in migrated.banner
        assert "ordernumbers up --demo" in migrated.banner
        assert migrated.command("inventory", "stats")["local"]["available"] == 0
    with Up(settings, open_path, "--demo").until_ready() as demo:
        assert is_a_sale(demo.pasted("curl"))


def _empty(postgres, name):
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.url(name)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("port", "variable"),
    [
        ("rest_port", "ORDERNUMBERS_REST_PORT"),
        ("grpc_port", "ORDERNUMBERS_GRPC_PORT"),
        ("metrics_port", "ORDERNUMBERS_METRICS_PORT"),
        ("edge_metrics_port", "ORDERNUMBERS_EDGE_METRICS_PORT"),
    ],
)
def test_a_port_in_use_is_named_with_its_setting_before_anything_starts(open_path, port, variable):
    settings = local_settings(open_path / ".data")
    number = getattr(settings, port)
    with socket.create_server(("127.0.0.1", number)):
        up = Up(settings, open_path)
        assert up.until_ended() == 1
    assert (
        f"port {number} of 127.0.0.1 is in use. Stop the process that uses it, or set {variable} to another\n"
        in up.logs
    )
    assert "Traceback" not in up.logs
    assert list(settings.data_dir.glob("postgres-*")) == []


def test_a_data_folder_in_use_is_named(open_path):
    settings = local_settings(open_path / ".data")
    with EmbeddedPostgres(settings.data_dir, fsync=False):
        up = Up(settings, open_path)
        assert up.until_ended() == 1
    assert f"the data folder {settings.data_dir} is in use by another `ordernumbers up`" in up.logs
    assert "ORDERNUMBERS_DATA_DIR" in up.logs


def test_an_unreachable_database_is_reported_without_its_password(open_path):
    up = Up(local_settings(open_path / ".data", database_url="postgresql://u:secret@127.0.0.1:1/db"), open_path)
    assert up.until_ended() == 1
    assert "cannot reach the database" in up.logs
    assert "secret" not in up.logs
    assert "Traceback" not in up.logs


# ---------------------------------------------------------------- side by side


def test_two_copies_run_side_by_side(open_path):
    with start(open_path, "one", workers=1) as one, start(open_path, "other", workers=1) as other:
        for up in (one.until_ready(), other.until_ready()):
            assert is_a_sale(up.pasted("curl"))


# ---------------------------------------------------------------- stopped during the start


def test_after_a_kill_during_its_start_nothing_runs_and_it_starts_again(open_path):
    up = start(open_path, workers=1)
    wait_until(lambda: list(up.settings.data_dir.glob("postgres-*.new")))
    processes = up.processes()
    up.process.kill()
    assert up.until_ended() == 128 + signal.SIGKILL
    wait_until(lambda: gone(processes))
    with Up(up.settings, up.folder) as second:
        assert is_a_sale(second.until_ready().pasted("curl"))


def test_it_can_be_stopped_during_its_start(open_path):
    up = start(open_path, workers=1)
    wait_until((up.settings.data_dir / ".lock").exists)
    assert up.stop() == 0
    assert up.banner == ""


# ---------------------------------------------------------------- processes that exit


@pytest.mark.parametrize("mark", ["server.run.worker", "bin/envoy", "bin/postgres"])
def test_a_process_that_exits_is_restarted_and_orders_succeed_again(up, mark):
    victim = next(
        process
        for process in up.processes()
        if mark in " ".join(process.cmdline()) and "guard.py" not in " ".join(process.cmdline())
    )
    victim.kill()
    wait_until(lambda: gone([victim]))
    wait_until(lambda: is_a_sale(up.pasted("curl")))
    assert up.command("check")["ok"] is True


def test_the_edge_runs_without_servers_until_it_is_stopped(open_path):
    """It listens and reports 503. `ordernumbers serve` may start later."""
    settings = local_settings(open_path / ".data")
    with Up(settings, open_path, command="edge") as edge:
        wait_until(lambda: status(edge) == 503)
        assert edge.stop() == 0


def status(up):
    """Return the status of /healthz, or None if the edge does not listen."""
    try:
        return httpx.get(f"{up.rest_url}/healthz").status_code
    except httpx.HTTPError:
        return None
