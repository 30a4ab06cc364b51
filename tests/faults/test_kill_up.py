"""SIGKILL in the middle of the load: nothing keeps running, nothing answered is lost, nothing is sold twice."""

import pytest

from server.run.embedded.postgres import url_of_running
from server.store.engine import admin_engine
from tests.support.customer import Customer
from tests.support.load import Load
from tests.support.stack import Up, gone, local_settings, wait_until

ORDERS_BEFORE_THE_KILL = 100


def itself(up):
    return up.process


def its_parent(up):
    """A shell that runs it, as `make run` does."""
    shell = up.process
    assert shell.name() == "sh"
    return shell


@pytest.mark.parametrize(("by", "victim"), [((), itself), (("/bin/sh", "-c", 'setsid "$0" "$@" & wait'), its_parent)])
def test_killed_under_load_nothing_keeps_running_and_nothing_answered_is_lost(open_path, by, victim):
    settings = local_settings(open_path / ".data")
    with Up(settings, open_path, by=by) as up:
        up.until_ready()
        customer = Customer.open(admin_engine(url_of_running(settings.data_dir)))
        processes = up.processes()
        with Load(up.rest_url, customer) as load:
            wait_until(lambda: len(load.sold) >= ORDERS_BEFORE_THE_KILL)
            victim(up).kill()
        wait_until(lambda: gone(processes))
    with Up(settings, open_path) as again:
        again.until_ready()
        assert again.command("check") == {"ok": True, "violations": []}
        owned = Customer(
            admin_engine(url_of_running(settings.data_dir)), customer.id, customer.key, customer.key_id
        ).owned()
        assert set(load.sold) <= owned <= set(load.numbers)
        assert len(load.numbers) > len(owned), "the kill came after the load"
