"""Alembic's entry: it runs on the connection that `upgrade` gives it."""

from alembic import context

from server.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
