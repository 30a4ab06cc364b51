"""Our own log: each line is one JSON object that a pipe keeps together."""

import json
import logging
import select
import subprocess
import sys

import pytest

from server.log import _JsonFormatter


def line_of(message, cause=None):
    info = (type(cause), cause, None) if cause else None
    record = logging.LogRecord("server", logging.ERROR, "", 1, message, (), info)
    return _JsonFormatter().format(record)


@pytest.mark.parametrize("letter", ["a", '"', "\n", "\x00", "é", "😀"])
@pytest.mark.parametrize("size", [10, 1000, 3000, 100_000])
def test_a_line_fits_into_a_pipe(letter, size):
    for line in (line_of(letter * size), line_of("failed", ValueError(letter * size))):
        assert len(line.encode()) < select.PIPE_BUF
        assert json.loads(line)["level"] == "ERROR"
        assert "\n" not in line


def test_a_long_traceback_keeps_its_beginning_and_its_end():
    exception = json.loads(line_of("failed", ValueError(f"begin {'x' * 9000} end")))["exception"]
    assert exception.startswith("ValueError: begin xxx")
    assert exception.endswith("xxx end")
    assert " […] " in exception


def test_a_line_that_fits_is_whole():
    assert json.loads(line_of("m" * 3000))["message"] == "m" * 3000


UNRAISABLE = """
from server.log import log_as_json
log_as_json()
class Broken:
    def __del__(self):
        1 / 0
Broken()
"""


def test_an_exception_that_python_cannot_raise_is_a_line_too():
    printed = subprocess.run([sys.executable, "-c", UNRAISABLE], capture_output=True, text=True, check=True).stderr
    (line,) = printed.splitlines()
    assert "ZeroDivisionError" in json.loads(line)["exception"]
