"""`ordernumbers up` with its demo, for the clients of clients/."""

import pytest

from tests.support.databases import open_folder
from tests.support.stack import Up, local_settings


@pytest.fixture(scope="session")
def up():
    """Two workers and Envoy. Every invariant holds when all tests of the clients have run."""
    with open_folder() as folder, Up(local_settings(folder / ".data"), folder) as up:
        yield up.until_ready()
        assert up.command("check") == {"ok": True, "violations": []}


@pytest.fixture(scope="session")
def api_key(up):
    return (up.settings.data_dir / "demo.key").read_text().strip()
