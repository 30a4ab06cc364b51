"""The guard, which ends a command together with its parent."""

import signal
import subprocess

import psutil
import pytest

from server.run.embedded.guard import guarded
from tests.support.stack import wait_until


def guard(*command, **options):
    return subprocess.Popen(guarded(list(command), **options), stdin=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM)])
def test_the_guard_exits_with_the_status_of_its_command(script, status):
    with guard("/bin/sh", "-c", script) as process:
        assert process.wait() == status


def test_a_command_that_does_not_exist_is_named(capfd):
    with guard("/does/not/exist") as process:
        assert process.wait() == 127
    assert capfd.readouterr().err == "/does/not/exist: No such file or directory\n"


@pytest.mark.parametrize("how", ["close", "signal"])
def test_a_command_that_ignores_the_signal_is_killed_with_its_children(how):
    stubborn = "trap '' TERM; sleep 600 & wait; sleep 600"
    with guard("/bin/sh", "-c", stubborn, grace_seconds=0.5) as process:
        sleeper = wait_for_sleeper(process)
        process.stdin.close() if how == "close" else process.terminate()
        assert process.wait() == 128 + signal.SIGKILL
        wait_until(lambda: not sleeper.is_running())


def wait_for_sleeper(process):
    found = []

    def seen():
        found[:] = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "sleep"]
        return found

    wait_until(seen)
    return found[0]
