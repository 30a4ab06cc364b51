"""Every setting, command and duration that deploy/ names agrees with the program."""

import re

import pytest
import typer
import yaml

from server import cli
from server.config import PREFIX, Settings, variable_of
from server.run.edge import GRACE_SECONDS
from server.run.serve import KILL_AFTER_SECONDS
from tests.support.deploy import DEPLOY, KUBERNETES, ROOT, UNITS, compose, unit_lines

SETTINGS = {variable_of(name) for name in Settings.model_fields}
MANIFESTS = [*KUBERNETES.rglob("*.yaml"), DEPLOY / "compose.yaml"]
FILES = [ROOT / "Dockerfile", *UNITS, *MANIFESTS]

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def named_settings(path):
    """The settings that a file gives a value to. Not those in its comments."""
    text = re.sub(r"(^|\s)#.*", "", path.read_text())
    return set(re.findall(rf"\b(?:{PREFIX}|DATABASE_)[A-Z_]+", text))


def values(node, *names):
    """Everything under one of these names, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from [value] if name in names else values(value, *names)
    elif isinstance(node, list):
        for each in node:
            yield from values(each, *names)


def commands():
    """The commands of the program, each with its words."""
    for name, command in typer.main.get_command(cli.app).commands.items():
        yield from ([name, each] for each in command.commands) if hasattr(command, "commands") else [[name]]


def is_command(words):
    """Whether the program has this command, with these options."""
    known = next((each for each in commands() if words[: len(each)] == each), None)
    if known is None:
        return False
    found = typer.main.get_command(cli.app)
    for word in known:
        found = found.commands[word]
    options = {option for parameter in found.params for option in parameter.opts}
    return {word for word in words if word.startswith("--")} <= options


@each_file
def test_every_setting_exists(path):
    assert named_settings(path) - SETTINGS == set()


def test_the_database_url_comes_from_a_file_only():
    # Every process of the same user can read an environment, and so can everyone who may see the manifests.
    assert [path for path in FILES if "DATABASE_URL" in named_settings(path)] == []


def test_the_files_name_settings():
    assert len(set().union(*map(named_settings, FILES))) > 12


def test_is_command_knows_a_wrong_word():
    assert is_command(["db", "upgrade"])
    assert not is_command(["db", "downgrade"])
    assert not is_command(["serve", "--minutes", "1"])


def test_every_command_of_kubernetes_exists():
    found = [
        words for path in MANIFESTS for each in yaml.safe_load_all(path.read_text()) for words in values(each, "args")
    ]
    assert len([words for words in found if isinstance(words, list)]) == 3
    assert [words for words in found if isinstance(words, list) and not is_command(words)] == []


def test_every_command_of_compose_exists():
    found = [each["command"] for each in compose()["services"].values() if "command" in each]
    assert sorted(found) == [["db", "upgrade"], ["edge"], ["serve"]]
    assert [words for words in found if not is_command(words)] == []


def test_every_command_of_systemd_exists():
    found = [value.split() for path in UNITS for name, value in unit_lines(path) if name == "ExecStart"]
    assert {words[0] for words in found} == {"/opt/ordernumbers/bin/ordernumbers"}
    assert sorted(words[1:] for words in found) == [["db", "upgrade"], ["edge"], ["serve"]]
    assert [words for words in found if not is_command(words[1:])] == []


# ---------------------------------------------------------------- how long a stop may take


def stop_seconds(kill_after):
    """How long a server or an edge may take to drain, before it kills its own child process."""
    settings = Settings()
    return (settings.drain_ms + max(settings.deadline_max_ms, settings.rest_deadline_ms)) / 1000 + kill_after


def test_kubernetes_waits_for_the_longest_drain():
    for name, kill_after in (("servers", KILL_AFTER_SECONDS), ("edge", GRACE_SECONDS)):
        deployment = next(yaml.safe_load_all((KUBERNETES / f"base/{name}.yaml").read_text()))
        (pod,) = values(deployment["spec"]["template"], "spec")
        (grace,) = values(pod, "terminationGracePeriodSeconds")
        sleep = sum(float(each["exec"]["command"][1]) for each in values(pod, "preStop"))
        assert grace >= sleep + stop_seconds(kill_after) + 5


def test_compose_waits_for_the_longest_drain():
    services = compose()["services"]
    for name, kill_after in (("servers", KILL_AFTER_SECONDS), ("edge", GRACE_SECONDS)):
        assert float(services[name]["stop_grace_period"].removesuffix("s")) >= stop_seconds(kill_after) + 5


def test_systemd_waits_for_the_longest_drain_and_stops_the_parent_first():
    for name, kill_after in (("serve", KILL_AFTER_SECONDS), ("edge", GRACE_SECONDS)):
        unit = dict(unit_lines(DEPLOY / f"systemd/ordernumbers-{name}.service"))
        assert float(unit["TimeoutStopSec"]) >= stop_seconds(kill_after) + 5
        assert unit["KillMode"] == "mixed"
