"""A connection pooler: session mode works. Other modes would lose session settings, and are refused at the start.

Runs where PgBouncer is installed (`apt-get install pgbouncer`).
"""

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import grpc
import psycopg
import pytest

from server.store.engine import POOLER_NOT_IN_SESSION_MODE
from tests.support.callers import Grpc
from tests.support.stack import Up, free_ports, local_settings, wait_until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")


@pytest.fixture
def pooled(database, open_path):
    """Start a PgBouncer in that mode before the test's database, and return its URL."""
    running = []

    def start(mode, **settings):
        address = urlsplit(database.url)
        (socket_dir,) = parse_qs(address.query)["host"]
        owner = Path(socket_dir).stat()
        port, name = free_ports(1), unquote(address.path[1:])
        lines = {"pool_mode": mode, "listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": ""}
        lines |= {"auth_type": "any", "ignore_startup_parameters": "extra_float_digits", **settings}
        configuration = open_path / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n{name} = host={socket_dir} port=5432 user=ordernumbers\n[pgbouncer]\n"
            + "".join(f"{key} = {value}\n" for key, value in lines.items())
        )
        as_owner = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
        command = [PGBOUNCER, "--quiet", configuration]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, **as_owner))
        url = f"postgresql://ordernumbers@127.0.0.1:{port}/{name}"
        wait_until(lambda: _accepts_connections(url))
        return url

    yield start
    for process in running:
        process.terminate()
        process.wait()


def _accepts_connections(url):
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("settings", [{}, {"server_round_robin": 1}])
def test_a_pooler_in_transaction_mode_is_refused(pooled, ordernumbers, monkeypatch, settings):
    monkeypatch.setenv("DATABASE_URL", pooled("transaction", **settings))
    for command in (("serve",), ("check",), ("db", "upgrade"), ("org", "create", "Acme")):
        assert ordernumbers.refusal(*command) == POOLER_NOT_IN_SESSION_MODE


def test_commands_and_orders_work_through_a_pooler_in_session_mode(
    pooled, ordernumbers, monkeypatch, customer, open_path
):
    url = pooled("session")
    monkeypatch.setenv("DATABASE_URL", url)
    assert ordernumbers("org", "show", customer.id)["name"] == "A customer"
    settings = local_settings(open_path / ".data", database_url=url, workers=1)
    with Up(settings, open_path / "serve", command="serve") as serve:
        wait_until(lambda: "serving on" in serve.logs)
        with grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            assert Grpc(channel)(customer.key, numbers=customer.numbers(2)).status == 200
