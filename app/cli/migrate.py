"""`polyprefix migrate`: bring a catalog's tables to the state that this program knows."""

from __future__ import annotations

from app.cli.catalog import DatabaseUrl, DataDir, catalog_settings
from app.cli.console import stdout


def migrate(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the catalog's tables up to date; once, before servers of a new version start.

    A catalog in a local file is brought up to date by the server itself when it starts; one that
    several servers share is not, so that they never change it under each other. There is no way
    back but a copy that was made before.

    Example: `POLYPREFIX_DATABASE_URL=postgresql://polyprefix@db/polyprefix polyprefix migrate`
    """
    from app.db import database

    settings = catalog_settings(data_dir, database_url)
    before, after = database.migrate(settings.catalog_url)
    if before == after:
        stdout().print(f"revision {after}: up to date")
    else:
        stdout().print(f"revision {before or 'none'} → {after}")
