"""The documents agree with the code: settings, errors, links, file paths, make targets, the map of the package."""

import re
import runpy
from pathlib import Path

import pytest
import typer
from google.api import annotations_pb2

import server
from server import cli
from server.config import PREFIX, Settings
from server.errors import ERRORS
from server.rpc.auth import required_scope
from server.rpc.server import SERVICE

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/bench/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "clients").glob("*/README.md")),
]
README = (ROOT / "README.md").read_text()
CALLING = "\n".join(path.read_text() for path in sorted((ROOT / "docs/calling").glob("*.md")))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def rows(text):
    """The cells of each table row."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_the_settings_page_is_up_to_date():
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    assert (ROOT / "docs/settings.md").read_text() == generate["settings_page"]()


def variable_of(name):
    return name.upper() if name.startswith("database_url") else PREFIX + name.upper()


def setting_row(name, field):
    default = "cores" if name == "workers" else "" if field.default is None else str(field.default)
    meaning = field.description
    for other in Settings.model_fields:
        meaning = meaning.replace(f"`{other}`", f"`{variable_of(other)}`")
    return f"| `{variable_of(name)}` | {default.lower() if default in ('True', 'False') else default} | {meaning} |"


def test_the_settings_page_has_each_setting_with_its_default_and_meaning():
    lines = (ROOT / "docs/settings.md").read_text().splitlines()
    documented = [line for line in lines if line.startswith("| `")]
    assert documented == [setting_row(name, field) for name, field in Settings.model_fields.items()]


def test_the_settings_page_names_settings_by_their_variables():
    page = (ROOT / "docs/settings.md").read_text()
    assert set(re.findall(r"`(\w+)`", page)) & set(Settings.model_fields) == set()


def test_the_errors_page_has_each_error_with_its_statuses():
    documented = [tuple(row[:3]) for row in rows((ROOT / "docs/errors.md").read_text()) if row[0].isdigit()]
    expected = [(str(spec.http_status), f"`{spec.grpc_status}`", f"`{code}`") for code, spec in ERRORS.items()]
    assert sorted(documented) == sorted(expected)


def test_the_readme_has_each_error_with_its_http_status():
    documented = [tuple(row[:2]) for row in rows(README) if row[0].isdigit()]
    assert sorted(documented) == sorted((str(spec.http_status), f"`{code}`") for code, spec in ERRORS.items())


def route_of(method):
    """`POST /v1/phone-numbers/search`: the verb and the path of an RPC over REST."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return f"{verb.upper()} {getattr(rule, verb)}"


def test_the_readme_has_each_call_with_its_route_and_scope():
    calls = [[cell.strip("`") for cell in row] for row in rows(README) if len(row) == 4]
    documented = [(route.partition("?")[0], name, scope) for route, name, scope, _ in calls if "numbers:" in scope]
    expected = [
        (route_of(method).replace("/v1/phone-numbers", "").strip(), method.name, required_scope(method))
        for method in SERVICE.methods
    ]
    assert sorted(documented) == sorted(expected)


@pytest.mark.parametrize("method", [*SERVICE.methods], ids=lambda method: method.name)
def test_the_pages_about_calls_have_each_call_with_its_route_and_fields(method):
    assert f"`{route_of(method)}" in CALLING
    assert f"`{method.name}`" in CALLING
    in_path = re.findall(r"{(\w+)}", route_of(method))
    fields = [field.name for field in method.input_type.fields if field.name not in in_path]
    assert [name for name in fields if f"`{name}`" not in CALLING and f"?{name}=" not in CALLING] == []


def test_no_line_of_the_readme_is_too_long():
    assert [line for line in README.splitlines() if len(line) > 120] == []


@each_page
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@each_page
def test_every_file_that_a_page_names_exists(page):
    named = re.findall(r"(?<![\w./-])((?:server|tests|docs|envoy|protos|gen|\.ci)/[\w./*-]*\w)", page.read_text())
    assert [path for path in named if not any(ROOT.glob(path))] == []


@each_page
def test_every_setting_that_a_page_names_exists(page):
    named = re.findall(rf"{PREFIX}([A-Z_]+[A-Z])", page.read_text())
    assert {name.lower() for name in named} <= set(Settings.model_fields)


@each_page
def test_every_make_target_that_a_page_names_exists(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text())) <= set(targets)


def commands():
    """The words after `ordernumbers`: `check`, `org show`."""
    for name, command in typer.main.get_command(cli.app).commands.items():
        yield from (f"{name} {each}" for each in command.commands) if hasattr(command, "commands") else [name]


@each_page
def test_every_command_that_a_page_names_exists(page):
    named = re.findall(r"(?:`|\$ )ordernumbers ([a-z]+(?: [a-z]+)?)", page.read_text())
    known = set(commands())
    assert [name for name in named if name not in known and name.split()[0] not in known] == []


def test_the_map_of_the_package_has_every_module_and_folder():
    folder = Path(server.__file__).parent
    present = {path.name for path in folder.glob("*.py")} | {f"{path.parent.name}/" for path in folder.glob("*/*.py")}
    mapped = re.findall(r"(?<!\S)(?:\w+/)+(?!\S)|(?<!\S)\w+\.py(?!\S)", server.__doc__)
    assert [name for name in mapped if not (folder / name).exists()] == []
    assert present - set(mapped) == {"__init__.py"}
