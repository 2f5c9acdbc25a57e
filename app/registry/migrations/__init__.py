"""The history of the catalog's tables, as Alembic revisions; `app.registry.migrate` runs them."""
