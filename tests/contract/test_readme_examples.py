"""The README's calls, run as they stand but for the address, the key's file and the number."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
ROOT = Path(__file__).parents[2]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def console(command):
    """The command of a console block that begins with this word, its continuation lines joined."""
    (found,) = re.findall(rf"^\$ ({command} (?:.*\\\n)*.*)", "\n".join(blocks("console")), re.MULTILINE)
    return found


@pytest.fixture
def as_told(service, customer, tmp_path):
    """Puts this test's service, key and numbers into an example."""
    (tmp_path / "demo.key").write_text(customer.key + "\n")
    known = {}

    def translate(example):
        for number in re.findall(r"\+1415555\d{4}", example):
            known.setdefault(number, customer.numbers(1)[0])
            example = example.replace(number, known[number])
        example = example.replace("127.0.0.1:8080", service.edge_target).replace(
            "127.0.0.1:50051", service.grpc_targets[0]
        )
        return example.replace(".data/demo.key", str(tmp_path / "demo.key"))

    return translate


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_curl_line_orders_a_number_and_again_is_told_why_not(as_told):
    first, again = (json.loads(run("bash", "-c", as_told(console("curl")))) for _ in range(2))
    assert first["success"] is True
    assert again["error"]["code"] == "INSUFFICIENT_INVENTORY"


def test_the_answers_shown_have_the_shape_of_the_answers_given(as_told):
    for shown in map(json.loads, blocks("json")):
        given = json.loads(run("bash", "-c", as_told(console("curl"))))
        assert _shape(given) | {"label": str, "mms_enabled": bool} == _shape(shown) | {
            "label": str,
            "mms_enabled": bool,
        }


def _shape(value):
    if isinstance(value, dict):
        return {name: _shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shape(inner) for inner in value]
    return type(value)


def test_the_buf_line_orders_a_number(as_told):
    assert json.loads(run("bash", "-c", as_told(console("buf curl"))))["success"] is True


def test_the_python_client_orders_numbers_and_reads_a_refusal(as_told):
    (example,) = blocks("python")
    client = as_told(example)
    numbers = re.findall(r'"(\+1900\d+)"', client)
    assert run(sys.executable, "-c", client) == f"ours: {numbers}\n"
    assert run(sys.executable, "-c", client) == f"INSUFFICIENT_INVENTORY {numbers}\n"
