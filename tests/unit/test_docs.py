"""The documents agree with the code: settings, errors, links, file paths, make targets, the map of the package."""

import re
import runpy
from pathlib import Path

import pytest

import server
from server.config import PREFIX, Settings
from server.errors import ERRORS

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/bench/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text()

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def rows(text):
    """The cells of each table row."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_the_settings_page_is_up_to_date():
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    assert (ROOT / "docs/settings.md").read_text() == generate["settings_page"]()


def variable_of(name):
    return "DATABASE_URL" if name == "database_url" else PREFIX + name.upper()


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


def test_the_map_of_the_package_has_every_module_and_folder():
    folder = Path(server.__file__).parent
    present = {path.name for path in folder.glob("*.py")} | {f"{path.parent.name}/" for path in folder.glob("*/*.py")}
    mapped = re.findall(r"(?<!\S)(?:\w+/)+(?!\S)|(?<!\S)\w+\.py(?!\S)", server.__doc__)
    assert [name for name in mapped if not (folder / name).exists()] == []
    assert present - set(mapped) == {"__init__.py"}
