"""`polyprefix migrate`: bring the tables of a catalog up to date."""

from __future__ import annotations

from app.cli.catalog import DatabaseUrl, DataDir, catalog_settings
from app.cli.console import stdout


def migrate(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the catalog's tables up to date. Run it once before servers of a new version start.

    A server updates a catalog in a local file itself when it starts. It does not update a catalog
    that several servers share. Make a copy first: this cannot be undone.

    Example: `POLYPREFIX_DATABASE_URL=postgresql://polyprefix@db/polyprefix polyprefix migrate`
    """
    from app.db import database

    settings = catalog_settings(data_dir, database_url)
    before, after = database.migrate(settings.catalog_url)
    if before == after:
        stdout().print(f"revision {after}: up to date")
    else:
        stdout().print(f"revision {before or 'none'} → {after}")
