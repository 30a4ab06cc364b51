"""The examples of README.md and docs/, run as they are, with this test's address, key file and numbers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README, CALLING, ERRORS = ((ROOT / page).read_text() for page in ("README.md", "docs/calling.md", "docs/errors.md"))


def blocks(language, page):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def console(command):
    """The README's command that starts with these words, with its continuation lines."""
    (found,) = re.findall(rf"^\$ ({command} (?:.*\\\n)*.*)", "\n".join(blocks("console", README)), re.MULTILINE)
    return found


@pytest.fixture
def adapted(service, customer, tmp_path):
    """Puts this test's service, key and numbers into an example."""
    (tmp_path / "demo.key").write_text(customer.key + "\n")
    known = {}

    def adapt(example):
        for number in re.findall(r"\+1415555\d{4}", example):
            known.setdefault(number, customer.numbers(1)[0])
            example = example.replace(number, known[number])
        example = example.replace("127.0.0.1:8080", service.edge_target).replace(
            "127.0.0.1:50051", service.grpc_targets[0]
        )
        return example.replace(".data/demo.key", str(tmp_path / "demo.key"))

    return adapt


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_curl_command_orders_a_number_and_is_refused_the_second_time(adapted):
    first, again = (json.loads(run("bash", "-c", adapted(console("curl")))) for _ in range(2))
    assert first["success"] is True
    assert again["error"]["code"] == "INSUFFICIENT_INVENTORY"


def test_the_responses_shown_have_the_shape_of_real_ones(adapted):
    for shown in map(json.loads, blocks("json", README)):
        real = json.loads(run("bash", "-c", adapted(console("curl"))))
        assert _shape(real) | {"label": str, "mms_enabled": bool} == _shape(shown) | {
            "label": str,
            "mms_enabled": bool,
        }


def _shape(value):
    if isinstance(value, dict):
        return {name: _shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shape(inner) for inner in value]
    return type(value)


def test_the_refusal_of_the_errors_page_is_a_real_one(adapted):
    (shown,) = map(json.loads, blocks("json", ERRORS))
    real = json.loads(run("bash", "-c", adapted(console("curl")).replace('"]', '", "4155550100"]')))
    real["error"]["request_id"] = shown["error"]["request_id"]
    assert real == shown


def test_the_buf_command_orders_a_number(adapted):
    assert json.loads(run("bash", "-c", adapted(console("buf curl"))))["success"] is True


def test_the_python_client_orders_numbers_and_reads_a_refusal(adapted):
    (example,) = blocks("python", CALLING)
    client = adapted(example)
    numbers = re.findall(r'"(\+1900\d+)"', client)
    assert run(sys.executable, "-c", client) == f"ordered: {numbers}\n"
    assert run(sys.executable, "-c", client) == f"INSUFFICIENT_INVENTORY {numbers}\n"
