"""`make ha`: its example calls work, and Ctrl-C leaves nothing behind."""

import json
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

START_SECONDS_MAX = 180


@pytest.fixture
def make_ha(tmp_path):
    if missing := missing_parts():
        pytest.skip(f"not installed: {', '.join(missing)}")
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-m", "deploy.ha"]
        with subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True) as process:
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
    sold = [json.loads(subprocess.check_output(["sh", "-c", call], stderr=subprocess.DEVNULL)) for call in calls]
    assert [len(response["data"]) for response in sold] == [2, 1]
    (check,) = re.findall(r"^DATABASE_URL_FILE=.*$", output(), re.MULTILINE)
    assert subprocess.check_output(["sh", "-c", check], text=True) == "All invariants hold.\n"
    folder = Path(re.search(r"files and logs\s+(\S+)", output())[1])
    assert folder.is_dir()

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, output()
    assert not folder.exists()
    assert not [p for p in psutil.process_iter() if str(folder) in " ".join(_command_line(p))]
    if can_make_namespaces():
        listed = subprocess.check_output(["ip", "netns", "list"], text=True)
        assert f"{PREFIX}{process.pid}-" not in listed
        assert not Path(f"/sys/class/net/{PREFIX}{process.pid}").exists()


def _command_line(process):
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
