"""deploy/systemd: systemd accepts the units, and finds little that they leave open. No unit is started here."""

import subprocess

import pytest

from tests.support.deploy import UNITS, needs_systemd, run, unit_lines
from tests.support.stack import COMMAND

EXPOSURE_MAX = 2.0
"""Of 10. systemd calls up to 2 "OK" and below 1 "SAFE", which a service with a network does not reach."""

pytestmark = [needs_systemd, pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)]


@pytest.fixture
def installed(unit, tmp_path):
    """The unit, with the program of these tests. systemd checks that the program exists."""
    path = tmp_path / unit.name
    path.write_text(unit.read_text().replace("/opt/ordernumbers/bin/ordernumbers", COMMAND))
    return path


def test_systemd_accepts_the_unit(unit, installed):
    command = ["systemd-analyze", "verify", "--man=no", installed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # An unknown setting is only a warning. Other units of the machine may have warnings, too.
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []
    assert done.returncode == 0, done.stderr


def test_the_unit_leaves_little_open(unit, installed):
    threshold = f"--threshold={EXPOSURE_MAX * 10:g}"
    run("systemd-analyze", "security", "--offline=yes", "--no-pager", threshold, installed)


def test_the_database_url_is_a_credential(unit):
    lines = unit_lines(unit)
    has_url = ("Environment", "DATABASE_URL_FILE=%d/database-url") in lines
    assert has_url == ("edge" not in unit.name)
    assert has_url == (("LoadCredential", "database-url:/etc/ordernumbers/database-url") in lines)
