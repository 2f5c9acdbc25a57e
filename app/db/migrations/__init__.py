"""The history of the catalog's tables, as Alembic revisions; `app.db.migrate` runs them."""
