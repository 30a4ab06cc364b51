"""`ordernumbers up` with its demo, for the clients of clients/."""

import pytest

from ordernumbers_client import Client
from tests.clients.python import InStep
from tests.support.databases import open_folder
from tests.support.mishaps import Mishaps
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


@pytest.fixture(params=[Client, InStep], ids=["sync", "async"])
def kind(request):
    return request.param


@pytest.fixture
def client(kind, up, api_key):
    with kind(up.rest_url, api_key) as client:
        yield client


@pytest.fixture
def mishaps(kind, up, api_key):
    """Start a client behind a proxy that spoils the first responses. Returns both."""
    opened = []

    def start(*mishaps, **options):
        proxy = Mishaps(up.settings.rest_port, *mishaps).__enter__()
        client = kind(proxy.url, api_key, **options).__enter__()
        opened.extend([client, proxy])
        return client, proxy

    yield start
    for each in opened:
        each.__exit__(None, None, None)
