"""The examples of README.md and docs/, run as they are against a real `ordernumbers up` with its demo."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.databases import open_folder
from tests.support.stack import Up, local_settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TOURS = [ROOT / "README.md", ROOT / "docs/calling.md", *sorted((ROOT / "docs/calling").glob("*.md"))]
END = "<end of a block>\n"

# What differs from one run to another. Equal texts get equal names, so the test sees which id a response repeats.
VARYING = re.compile(
    r'(?P<number>\+1\d{10})|(?P<id>"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")|(?P<time>"\d{4}-\d\d-\d\dT[\d:]{8}Z")'
    r'|(?P<request_id>"[0-9A-HJKMNP-TV-Z]{26}")|(?P<cursor>"[\w-]{22}")'
)
NAMELESS = ("time", "request_id", "cursor")


def blocks(language, page):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def examples(page):
    """The blocks of commands of a page, each with the response that is shown below it, or None."""
    found = re.findall(r"```sh\n(.*?)```\n(?:```json\n(.*?)```)?", page, re.DOTALL)
    return [(commands, json.loads(shown) if shown else None) for commands, shown in found]


def functions():
    """The shell functions with which the README begins its tour."""
    commands, _ = examples(README)[0]
    return commands


def console(command):
    """The README's command that starts with these words, with its continuation lines."""
    (found,) = re.findall(rf"^\$ ({command} (?:.*\\\n)*.*)", "\n".join(blocks("console", README)), re.MULTILINE)
    return found


def named(responses):
    """The responses as text. What differs from one run to another has a name instead of its value."""
    names = defaultdict(dict)

    def name(match):
        kind = match.lastgroup
        known = names[kind]
        return f"<{kind}>" if kind in NAMELESS else f"<{kind} {known.setdefault(match[0], len(known) + 1)}>"

    return [VARYING.sub(name, json.dumps(response, indent=1)) for response in responses]


@pytest.fixture(scope="module")
def up():
    """A first start: the demo has 1,000 numbers. Every invariant holds when the examples have run."""
    with open_folder() as folder, Up(local_settings(folder / ".data", workers=1), folder) as up:
        yield up.until_ready()
        assert up.command("check") == {"ok": True, "violations": []}


@pytest.fixture
def adapted(up):
    """Puts the addresses of this start into an example."""

    def adapt(example):
        edge, worker = f"127.0.0.1:{up.settings.rest_port}", f"127.0.0.1:{up.settings.grpc_port}"
        return example.replace("127.0.0.1:8080", edge).replace("127.0.0.1:50051", worker)

    return adapt


def run(folder, *command):
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(params=["sh", "bash"])
def shell(request):
    return request.param


@pytest.mark.parametrize("path", TOURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_pasted_into_a_shell_the_examples_of_a_page_get_the_responses_that_it_shows(up, adapted, shell, path):
    page = examples(path.read_text())
    commands = [functions(), *(commands for commands, _ in page)]
    printed = run(up.folder, shell, "-c", adapted(f"printf '{END}'\n".join(commands))).split(END)[1:]
    shown = [response for _, response in page if response]
    real = [json.loads(lines.splitlines()[-1]) for lines, (_, response) in zip(printed, page, strict=True) if response]
    assert named(real) == named(shown)


def test_the_refusal_of_the_errors_page_is_a_real_one(up, adapted):
    (shown,) = map(json.loads, blocks("json", (ROOT / "docs/errors.md").read_text()))
    order = """call POST /orders '{"numbers": ["+14155550100", "4155550100"]}'"""
    assert named([json.loads(run(up.folder, "sh", "-c", adapted(functions() + order)))]) == named([shown])


def test_the_buf_command_searches(up, adapted):
    command = adapted(console("buf curl")).replace(" gen/", f" {ROOT}/gen/")
    assert len(json.loads(run(up.folder, "sh", "-c", command))["data"]) == 10


def test_the_python_client_orders_what_it_finds_and_reads_a_refusal_and_all_pages(up, adapted):
    (example,) = blocks("python", (ROOT / "docs/calling.md").read_text())
    ordered, refused, listed = run(up.folder, sys.executable, "-c", adapted(example)).splitlines()
    assert re.fullmatch(r"ordered: \['\+1415555\d{4}', '\+1415555\d{4}'\]", ordered)
    assert refused == f"INSUFFICIENT_INVENTORY {ordered.removeprefix('ordered: ')}"
    assigned = sum(counts["assigned"] for counts in up.command("inventory", "stats").values())
    assert listed == f"numbers: {assigned}"
