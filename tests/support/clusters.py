"""What tests of the embedded PostgreSQL share."""

import os

import psutil
import psycopg
import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def value(url, query):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]


def processes_of(data_dir):
    """Return all processes with the folder on their command line: guards and postmasters."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(data_dir) in word for word in process.info["cmdline"] or ())
    ]


def cluster_of(data_dir):
    (cluster,) = [path for path in data_dir.glob("postgres-*") if path.is_dir()]
    return cluster
