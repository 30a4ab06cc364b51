"""Adds holds, the rest after a release, the history of a number, and the count of numbers of a bulk order."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(Path(__file__).with_suffix(".sql").read_text())
