"""Commands on the catalog itself: their options, how they open it, and `polyprefix migrate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.configuration import check_folder, read_settings
from app.cli.console import stdout

if TYPE_CHECKING:
    from app.db.database import Actor, Database
    from app.settings import Settings
    from app.tenancy.auth.keyring import Keyring
    from app.tenancy.tenants import Tenants

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="POLYPREFIX_DATA_DIR",
        help="Folder of the server's catalog; by default `data`.",
        show_default=False,
    ),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        envvar="POLYPREFIX_DATABASE_URL",
        help="Catalog of several servers: `postgresql://user@host/name`. Prefer the environment"
        " variable if it contains a password.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
TenantId = Annotated[str, typer.Argument(help="Id of the tenant.", show_default=False)]


@dataclass(frozen=True)
class Tenancy:
    """What works on the tenants and keys of one catalog, and the command that does it."""

    accounts: Tenants
    keyring: Keyring
    actor: Actor


def catalog_settings(data_dir: Path | None, database_url: str | None) -> Settings:
    """The settings of the catalog; its folder is created if it is missing."""
    settings = read_settings({"data_dir": data_dir, "database_url": database_url})
    if settings.database_url is None:
        check_folder(settings.data_dir, "--data-dir")
    return settings


@contextmanager
def opened(data_dir: Path | None, database_url: str | None) -> Iterator[tuple[Database, Settings]]:
    """Open the catalog of the options for the block."""
    from app.db.database import Database

    settings = catalog_settings(data_dir, database_url)
    catalog = Database(settings.catalog_url)
    try:
        yield catalog, settings
    finally:
        catalog.close()


@contextmanager
def tenancy(
    data_dir: Path | None, database_url: str | None, command: str = "read"
) -> Iterator[Tenancy]:
    """The tenants and keys of the catalog that the options name, to the end of the block.

    The audit log records changes that are made for its `actor` as done by `command`.
    """
    from app.tenancy.audit.log import AuditedCall, AuditLog
    from app.tenancy.auth.keyring import Keyring
    from app.tenancy.tenants import Tenants

    with opened(data_dir, database_url) as (catalog, settings):
        facts = {"action": command, "by": "command line"}
        actor = AuditedCall(AuditLog(catalog, settings.replica), facts)
        yield Tenancy(Tenants(catalog), Keyring(catalog, settings.pepper), actor)


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
