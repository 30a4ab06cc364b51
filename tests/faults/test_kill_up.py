"""SIGKILL in the middle of the load: nothing keeps running, nothing answered is lost, nothing is sold twice."""

import threading

import httpx
import psutil
import pytest

from server.local.postgres import url_of_running
from server.store.engine import admin_engine
from tests.callers import Rest
from tests.shop import Shop
from tests.stack import Up, gone, local_settings, wait_until

BUYERS = 8
ORDERS_BEFORE_THE_KILL = 100


class Load:
    """Buyers who order numbers, each its own, until nobody answers any more."""

    def __init__(self, up, shop):
        self.url = f"http://127.0.0.1:{up.settings.rest_port}"
        self.key = shop.key
        self.numbers = shop.numbers(3000)
        self.sold = []
        self._threads = [threading.Thread(target=self._buy, args=(i,)) for i in range(BUYERS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        for thread in self._threads:
            thread.join()

    def _buy(self, index):
        with httpx.Client(base_url=self.url, timeout=10) as client:
            rest = Rest(client)
            for number in self.numbers[index::BUYERS]:
                try:
                    answer = rest(self.key, numbers=[number])
                except (httpx.TransportError, ValueError):
                    return
                if answer.status == 200:
                    self.sold.append(number)


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
        shop = Shop.open(admin_engine(url_of_running(settings.data_dir)))
        processes = up.processes()
        with Load(up, shop) as load:
            wait_until(lambda: len(load.sold) >= ORDERS_BEFORE_THE_KILL)
            victim(up).kill()
        wait_until(lambda: gone(processes))
    with Up(settings, open_path) as again:
        again.until_ready()
        assert again.command("check") == {"ok": True, "violations": []}
        owned = Shop(admin_engine(url_of_running(settings.data_dir)), shop.id, shop.key, shop.key_id).owned()
        assert set(load.sold) <= owned <= set(load.numbers)
        assert len(load.numbers) > len(owned), "the kill came after the load"


def test_a_killed_worker_costs_no_answered_order(open_path):
    """The edge sends what was in flight there nowhere else, for it may have been carried out; the rest goes on."""
    settings = local_settings(open_path / ".data")
    with Up(settings, open_path) as up:
        up.until_ready()
        shop = Shop.open(admin_engine(url_of_running(settings.data_dir)))
        with Load(up, shop) as load:
            wait_until(lambda: len(load.sold) >= ORDERS_BEFORE_THE_KILL)
            worker = next(p for p in up.processes() if "server.process" in " ".join(p.cmdline()))
            worker.kill()
            psutil.wait_procs([worker])
        assert set(load.sold) <= shop.owned()
        assert len(load.sold) > 1000
        assert up.command("check") == {"ok": True, "violations": []}
