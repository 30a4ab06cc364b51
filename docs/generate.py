"""Write docs/settings.md from server/config.py. `make gen` runs it."""

import re
from pathlib import Path

from pydantic.fields import FieldInfo

from server.config import Settings, variable_of

PAGE = Path(__file__).with_name("settings.md")
HEAD = """\
# Settings

<!-- Generated from server/config.py by `make gen`. Do not edit it. -->

Settings are environment variables. A wrong value or an unknown `ORDERNUMBERS_` variable stops the start.
The message names the variable. An empty variable counts as unset. Durations are in milliseconds and end in `_MS`.

| variable | default | meaning |
|---|---|---|
"""


def settings_page() -> str:
    """The page, with one row per setting."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return HEAD + "\n".join(rows) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{variable_of(name)}` | {_default(name, field)} | {_meaning(field)} |"


def _default(name: str, field: FieldInfo) -> str:
    if name == "workers":
        return "cores"  # its default depends on the machine
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "" if field.default is None else str(field.default)


def _meaning(field: FieldInfo) -> str:
    """The setting's text. Where it names a setting, the page has its variable."""

    def variable(match: re.Match[str]) -> str:
        return f"`{variable_of(match[1])}`" if match[1] in Settings.model_fields else match[0]

    return re.sub(r"`(\w+)`", variable, field.description or "")


if __name__ == "__main__":
    PAGE.write_text(settings_page())
