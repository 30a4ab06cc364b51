"""The watchdog device of the hosts of `make ha`, as Patroni uses it."""

import os
import time

import pytest

from deploy.ha import watchdog
from deploy.ha.watchdog import Watchdog
from tests.support.stack import wait_until


@pytest.fixture
def happened():
    return []


@pytest.fixture
def device(tmp_path, happened, monkeypatch):
    monkeypatch.setattr(watchdog, "REBOOT_SECONDS", 0)
    path = tmp_path / "watchdog"
    device = Watchdog(path, lambda: (device.disarm(), happened.append("kill")), lambda: happened.append("start"))
    device.path = path
    yield device
    device.close()


def write(device, *parts):
    opened = os.open(device.path, os.O_WRONLY)
    for part in parts:
        os.write(opened, part)
    os.close(opened)


def test_a_host_is_reset_once_when_nothing_is_written_any_more(device, happened):
    write(device, b"Ctimeout=1\n", b"1")
    wait_until(lambda: happened)
    time.sleep(1.5)
    assert happened == ["kill", "start"]


@pytest.mark.parametrize("last", [b"V", b"1V"])
def test_a_device_that_was_closed_in_order_resets_nothing(device, happened, last):
    write(device, b"Ctimeout=1\n", b"1", last)
    time.sleep(1.5)
    assert happened == []


def test_a_host_without_power_is_not_reset(device, happened):
    write(device, b"Ctimeout=1\n")
    time.sleep(0.5)
    device.disarm()
    time.sleep(1)
    assert happened == []


def test_no_host_is_reset_while_its_patroni_writes(device, happened):
    write(device, b"Ctimeout=4\n")
    for _ in range(10):
        write(device, b"1")
        time.sleep(0.5)
    assert happened == []
