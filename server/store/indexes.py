"""Builds an index beside running orders."""

from sqlalchemy import Connection, text


def build(connection: Connection, name: str, definition: str) -> None:
    """Build the index, unless it is there. The definition begins with the table. The connection is in autocommit."""
    valid = connection.execute(
        text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"), {"name": name}
    ).scalar_one_or_none()
    if valid:
        return
    if valid is False:  # a build that was ended leaves an index that is not used
        drop(connection, name)
    connection.execute(text(f"CREATE INDEX CONCURRENTLY {name} ON {definition}"))


def drop(connection: Connection, name: str) -> None:
    """Remove the index, if it is there."""
    connection.execute(text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}"))
