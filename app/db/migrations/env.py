"""Runs revisions on the connection that `app.db.migrate` hands over; run by Alembic."""

from __future__ import annotations

from alembic import context

from app.db.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
    transaction_per_migration=False,
)
context.run_migrations()
