"""Alembic runs this file. It uses the connection that `upgrade` passes to it."""

from alembic import context

from server.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
