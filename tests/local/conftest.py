"""A data folder, and an embedded PostgreSQL in it."""

import pytest

from server.run.embedded.postgres import EmbeddedPostgres


@pytest.fixture
def data_dir(open_path):
    return open_path / "data"


@pytest.fixture
def started(data_dir):
    with EmbeddedPostgres(data_dir, fsync=False) as started:
        yield started
