"""SIGKILL of `ordernumbers up` while it places orders."""

import pytest

from server.run.embedded.postgres import url_of_running
from server.store.engine import admin_engine
from tests.support.background_orders import BackgroundOrders
from tests.support.customer import Customer
from tests.support.stack import Up, gone, local_settings, wait_until

ORDERS_BEFORE_THE_KILL = 100


def the_command(up):
    return up.process


def the_shell_that_runs_it(up):
    """`make run` runs the command in a shell too."""
    shell = up.process
    assert shell.name() == "sh"
    return shell


@pytest.mark.parametrize(
    ("by", "victim"),
    [((), the_command), (("/bin/sh", "-c", 'setsid "$0" "$@" & wait'), the_shell_that_runs_it)],
    ids=["the command", "the shell that runs it"],
)
def test_up_killed_under_load_leaves_no_process_and_loses_no_acknowledged_order(open_path, by, victim):
    settings = local_settings(open_path / ".data")
    with Up(settings, open_path, by=by) as up:
        up.until_ready()
        customer = Customer.open(admin_engine(url_of_running(settings.data_dir)))
        processes = up.processes()
        with BackgroundOrders(up.rest_url, customer) as orders:
            wait_until(lambda: len(orders.sold) >= ORDERS_BEFORE_THE_KILL)
            victim(up).kill()
        wait_until(lambda: gone(processes))
    with Up(settings, open_path) as again:
        again.until_ready()
        assert again.command("check") == {"ok": True, "violations": []}
        owned = Customer(
            admin_engine(url_of_running(settings.data_dir)), customer.id, customer.key, customer.key_id
        ).owned()
        assert set(orders.sold) <= owned <= set(orders.numbers)
        assert len(orders.numbers) > len(owned), "the kill came after the last order"
