"""`make ha`: its example calls work, and Ctrl-C leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deploy.ha.cluster import missing_parts
from deploy.ha.network import PREFIX, can_make_namespaces
from tests.support.stack import wait_until

START_SECONDS_MAX = 300
END_SECONDS_MAX = 120
WITHOUT_NAMESPACES = """
from deploy.ha import __main__, network
network.can_make_namespaces = lambda: False
raise SystemExit(__main__.main())
"""


@pytest.fixture(params=["with namespaces", "without namespaces"])
def make_ha(request, tmp_path):
    """The running command, and a function that returns what it has printed."""
    if not request.config.getoption("--full"):
        pytest.skip("only make test-ha runs it. make test starts these hosts in test_faults.py")
    if missing := missing_parts():
        pytest.skip(f"not installed: {', '.join(missing)}")
    if request.param == "with namespaces" and not can_make_namespaces():
        pytest.skip("network namespaces need root and iproute2")
    how = ["-m", "deploy.ha"] if request.param == "with namespaces" else ["-c", WITHOUT_NAMESPACES]
    with (
        (tmp_path / "out").open("w") as out,
        subprocess.Popen([sys.executable, *how], stdout=out, stderr=out, start_new_session=True) as process,
    ):
        yield process, (tmp_path / "out").read_text
        process.kill()


def test_the_example_calls_work_and_ctrl_c_leaves_nothing_behind(make_ha):
    process, output = make_ha
    wait_until(
        lambda: "Press Ctrl-C" in output(),
        seconds_max=START_SECONDS_MAX,
        is_hopeless=lambda: process.poll() is not None,
        report=output,
    )
    calls = re.findall(r"^curl .*?'$", output(), re.DOTALL | re.MULTILINE)
    sold = [json.loads(run(call)) for call in calls]
    assert [len(response["data"]) for response in sold] == [2, 1]
    (members,) = re.findall(r"^\S*patronictl .* list$", output(), re.MULTILINE)
    assert run(members).count("running") + run(members).count("streaming") == 3
    (check,) = re.findall(r"^DATABASE_URL_FILE=.*$", output(), re.MULTILINE)
    assert run(check) == "All invariants hold.\n"
    folder = Path(re.search(r"files and logs\s+(\S+)", output())[1])
    assert folder.is_dir()

    process.send_signal(signal.SIGINT)
    assert process.wait(END_SECONDS_MAX) == 0, output()
    assert not folder.exists()
    assert not [p for p in psutil.process_iter() if str(folder) in " ".join(_command_line(p))]
    if can_make_namespaces():
        listed = subprocess.check_output(["ip", "netns", "list"], text=True)
        assert f"{PREFIX}{process.pid}-" not in listed
        assert not Path(f"/sys/class/net/{PREFIX}{process.pid}").exists()


def run(command):
    """Paste a command of the banner into a shell, and return what it prints."""
    environment = {**os.environ, "no_proxy": "*"}
    return subprocess.check_output(["sh", "-c", command], text=True, stderr=subprocess.DEVNULL, env=environment)


def _command_line(process):
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
