"""The relay of child processes' output: whatever they print, every line that is passed on is one JSON object."""

import json
import select
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.log import pieces
from server.run.relay import TEXT_BYTES_MAX, Relay, json_lines

RELAY_OF_A_CHILD = """
import subprocess, sys
from server.run.relay import Relay
relay = Relay("child")
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stderr=relay.write_end)
relay.close()
child.wait()
relay.wait()
"""


def passed_on(script):
    """What our stderr gets from a child process that runs this script."""
    done = subprocess.run([sys.executable, "-c", RELAY_OF_A_CHILD, script], check=True, stderr=subprocess.PIPE)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_json_lines_are_passed_on_unchanged():
    line = b'{"time": "now", "code": "OK"}'
    assert list(json_lines([line], "worker 0")) == [line]


def test_plain_text_becomes_the_message_of_a_json_line():
    (line,) = json_lines([b"Fatal Python error: Segmentation fault"], "worker 0")
    entry = json.loads(line)
    assert entry["message"] == "Fatal Python error: Segmentation fault"
    assert (entry["level"], entry["process"]) == ("WARNING", "worker 0")
    assert entry["time"]


def test_a_line_of_grpc_core_keeps_its_level():
    texts = [b"E1130 17:40:07.215126   10321 parsing.cc:345] no", b"I0000 00:00:1764524407.215 10321 a.cc:3] yes"]
    assert [json.loads(line)["level"] for line in json_lines(texts, "worker 0")] == ["ERROR", "INFO"]


@pytest.mark.parametrize("byte", [b"x", b'"', b"\x01", b"\xff"])
def test_a_long_text_becomes_several_short_lines_and_none_of_it_is_lost(byte):
    text = byte * (20 * TEXT_BYTES_MAX + 1)
    lines = list(json_lines([text], "worker 0"))
    assert "".join(json.loads(line)["message"] for line in lines) == text.decode(errors="replace")
    assert all(len(line) < select.PIPE_BUF for line in lines)


def test_torn_lines_and_pieces_of_lines_are_passed_on_as_json():
    script = """
import os, time
for piece in (b'{"a": 1}\\n{"b"', b': 2}\\nplain ', b'text\\n\\xff\\n', b'{"torn": "by a cra'):
    os.write(2, piece)
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""
    lines = passed_on(script)
    assert lines[:2] == [{"a": 1}, {"b": 2}]
    assert [line["message"] for line in lines[2:]] == ["plain text", "\ufffd", '{"torn": "by a cra']


def test_a_line_that_never_ends_does_not_fill_the_memory():
    lines = passed_on("import os\nfor _ in range(100): os.write(2, b'y' * 60000)")
    assert sum(len(line["message"]) for line in lines) == 100 * 60000


@given(st.lists(st.binary(max_size=40)))
def test_every_line_is_one_json_object(lines):
    for line in json_lines(lines, "worker 0"):
        assert b"\n" not in line
        assert isinstance(json.loads(line), dict)


@given(st.lists(st.integers(min_value=0, max_value=6000)))
def test_pieces_keep_lines_together_and_are_short_enough_for_a_pipe(lengths):
    lines = b"".join(b"z" * length + b"\n" for length in lengths)
    found = list(pieces(lines))
    assert b"".join(found) == lines
    assert all(piece.endswith(b"\n") for piece in found)
    assert all(len(piece) <= select.PIPE_BUF or piece.count(b"\n") == 1 for piece in found)


def test_the_child_can_go_on_printing_when_nobody_reads_our_stderr():
    script = "import os\nfor _ in range(50): os.write(2, b'z' * 5000 + b'\\n')\nprint('done', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", RELAY_OF_A_CHILD, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stderr.close()
        assert process.stdout.read() == b"done\n"


def test_the_relay_ends_when_its_last_writer_has_gone():
    relay = Relay("nobody")
    relay.close()
    relay.wait()
    assert not relay._thread.is_alive()
