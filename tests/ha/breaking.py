"""The faults. Each is a context in which something is broken, and repaired at its end."""

import os
import re
import signal
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import psycopg

from deploy.ha.cluster import WORKER_PORT
from tests.support.stack import wait_until

SECONDS_MAX = 180
CLOCK_LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
FROZEN_SECONDS = 30


@contextmanager
def switchover(cluster, load):
    cluster.switch_over()
    yield


@contextmanager
def primary_killed(cluster, load):
    """Every process of its host gets SIGKILL: PostgreSQL, Patroni, etcd."""
    host = cluster.primary()
    host.kill()
    yield
    host.start()


@contextmanager
def postgresql_killed(cluster, load):
    """Only PostgreSQL. Patroni starts it again, or fails over."""
    host = cluster.primary()
    pid = int((host.folder / "postgres" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    yield


@contextmanager
def primary_cut_off(cluster, load):
    host = cluster.primary()
    host.cut()
    yield
    host.join()


@contextmanager
def primary_frozen(cluster, load):
    """Every process of its host stops. Its watchdog resets the host, and another one becomes primary."""
    host = cluster.primary()
    host.freeze()
    yield
    host.thaw()


@contextmanager
def patroni_frozen(cluster, load):
    """PostgreSQL goes on. The watchdog resets the host before another one becomes primary."""
    host = cluster.primary()
    host.freeze_program("patroni")
    wait_until(lambda: cluster.primary() not in (None, host), seconds_max=SECONDS_MAX)
    yield
    host.thaw()


@contextmanager
def standby_lost(cluster, load):
    host = cluster.standbys()[0]
    host.kill()
    yield
    host.start()


@contextmanager
def etcd_minority_lost(cluster, load):
    """The member on the primary's own host."""
    host = cluster.primary()
    host.kill_program("etcd")
    time.sleep(FROZEN_SECONDS)  # longer than the lease
    yield
    host.start()


@contextmanager
def etcd_majority_lost(cluster, load):
    """Orders stop until it is back."""
    lost = cluster.standbys()
    for host in lost:
        host.kill_program("etcd")
    wait_until(lambda: sells_nothing(load, 5), seconds_max=SECONDS_MAX)
    for host in lost:
        host.start()
    yield


@contextmanager
def server_lost(cluster, load):
    host = cluster.hosts["server1"]
    host.kill()
    yield
    host.start()
    wait_until(lambda: listens(host.address, WORKER_PORT), seconds_max=SECONDS_MAX)


@contextmanager
def edge_lost(cluster, load):
    host = cluster.hosts["edge1"]
    host.kill()
    yield
    host.start()
    wait_until(cluster.edges_serve, seconds_max=SECONDS_MAX)


def clock(seconds):
    @contextmanager
    def wrong(cluster, load):
        """The clock of PostgreSQL on one host is wrong, and it becomes primary.

        Only of PostgreSQL: etcd does not ask libc for the time, and in Patroni Python's `time.sleep` would fail.
        """
        host = cluster.standbys()[0]
        settings = host.folder / "patroni.yaml"
        right = settings.read_text()
        binaries = re.search("bin_dir: (.*)", right)[1]
        postgres = host.folder / "postgres-with-another-clock"
        environment = f"LD_PRELOAD={CLOCK_LIBRARY} FAKETIME={seconds:+}s FAKETIME_DONT_FAKE_MONOTONIC=1"
        postgres.write_text(f'#!/bin/sh\n{environment} exec {binaries}/postgres "$@"\n')
        postgres.chmod(0o755)
        restart_patroni(
            cluster, host, right.replace("  bin_dir:", f"  bin_name:\n    postgres: {postgres}\n  bin_dir:")
        )
        cluster.switch_over(host.name)
        load.wait_for_orders(200)
        with psycopg.connect(cluster.superuser_url(), connect_timeout=10) as connection:
            ((now,),) = connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchall()
        assert abs(float(now) - time.time() - seconds) < 15
        yield
        wait_until(cluster.is_whole, seconds_max=SECONDS_MAX)
        cluster.switch_over()
        wait_until(cluster.is_whole, seconds_max=SECONDS_MAX)
        load.wait_for_orders(200)
        restart_patroni(cluster, host, right)

    return wrong


def repair(cluster):
    """Undo what a test that has failed left broken."""
    for host in cluster.hosts.values():
        host.thaw()
        if cluster.network.can_cut:
            host.join()
        host.start()


def restart_patroni(cluster, host, settings):
    host.stop_program("patroni")
    (host.folder / "patroni.yaml").write_text(settings)
    host.start()
    wait_until(cluster.is_whole, seconds_max=SECONDS_MAX)


def sells_nothing(load, seconds):
    """Whether no order is sold for so long."""
    sold = load.sold
    time.sleep(seconds)
    return load.sold == sold


def listens(host, port):
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
