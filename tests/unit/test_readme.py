"""The README tells the truth: its table of settings is that of the settings, its table of errors that of the errors."""

from pathlib import Path

from server.config import PREFIX, Settings
from server.errors import ERRORS

README = (Path(__file__).parents[2] / "README.md").read_text()


def row(name, field):
    variable = "DATABASE_URL" if name == "database_url" else PREFIX + name.upper()
    default = "cores" if name == "workers" else "" if field.default is None else str(field.default)
    return f"| `{variable}` | {default.lower() if default in ('True', 'False') else default} | {field.description} |"


def test_every_setting_is_told_with_its_default_and_meaning():
    rows = [line for line in README.splitlines() if line.startswith(("| `ORDERNUMBERS_", "| `DATABASE_URL"))]
    assert rows == [row(name, field) for name, field in Settings.model_fields.items()]


def test_every_error_is_told_with_its_statuses():
    for code, spec in ERRORS.items():
        assert f"| {spec.http_status} | `{spec.grpc_status}` | `{code}` | " in README
