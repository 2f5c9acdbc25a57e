"""Brings a catalog's tables to the state that this program knows, through Alembic's revisions.

A catalog in a local file is brought there when it is opened; one that several replicas share is
brought there by `polyprefix migrate`, once, before they start. There is no way back: revisions are
undone by restoring a copy.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, inspect

from app.errors import PolyprefixError

_FOLDER = Path(__file__).parent / "migrations"
_FIRST = "0001"
"""What a catalog has that was made before revisions were counted."""


def head() -> str:
    """The revision that this program knows."""
    return str(ScriptDirectory(str(_FOLDER)).get_current_head())


def current(connection: Connection) -> str | None:
    """The catalog's revision, None if it has no tables yet."""
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None and inspect(connection).has_table("catalog_epoch"):
        return _FIRST
    return found


def is_current(connection: Connection) -> bool:
    """Whether the tables are the ones that this program knows.

    PolyprefixError if a later version of this program has made them.
    """
    found = current(connection)
    if found is not None and not _is_known(found):
        raise PolyprefixError(
            f"the catalog has revision {found}, which a later version of this program has made; "
            f"this one knows up to {head()}"
        )
    return found == head()


def upgrade(connection: Connection) -> tuple[str | None, str]:
    """Brings the tables to `head`, inside the caller's transaction; (revision before, after)."""
    before = current(connection)
    config = alembic_config(connection)
    if before == _FIRST and MigrationContext.configure(connection).get_current_revision() is None:
        command.stamp(config, _FIRST)
    if not is_current(connection):
        command.upgrade(config, "head")
    return before, head()


def alembic_config(connection: Connection) -> Config:
    """What Alembic needs to bring the tables of this connection to any revision."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _is_known(revision: str) -> bool:
    try:
        return ScriptDirectory(str(_FOLDER)).get_revision(revision) is not None
    except CommandError:
        return False
