"""The catalog's tables: brought up to date from every earlier state, and as declared."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, insert, select, text

from app.db import migrate as module
from app.db.database import Database, migrate
from app.db.migrate import head, upgrade
from app.db.schema import catalog_epoch, metadata, prefixes, tenants
from app.errors import PolyprefixError


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/catalog.sqlite3"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def first_release(engine: Engine) -> Engine:
    """A catalog as version 0.2.0 made it, which did not count revisions."""
    with engine.begin() as connection:
        command.upgrade(module.alembic_config(connection), "0001")
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(text("INSERT INTO catalog_epoch VALUES (1, 41, 1)"))
        connection.execute(text("INSERT INTO tenants VALUES ('demo', 'abc', 7)"))
        connection.execute(text("INSERT INTO prefixes VALUES (3, 'demo', 'e2e', 8)"))
    return engine


def test_the_revisions_make_the_tables_that_are_declared(engine: Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_new_catalog_begins_at_epoch_zero(url: str) -> None:
    assert migrate(url) == (None, head())
    assert migrate(url) == (head(), head())
    catalog = Database(url)
    assert catalog.epoch() == 0
    catalog.close()


@pytest.mark.usefixtures("first_release")
def test_a_catalog_of_the_first_release_keeps_what_it_holds(url: str) -> None:
    catalog = Database(url)
    assert catalog.epoch() == 41
    with catalog.read() as connection:
        row = connection.execute(select(tenants)).one()
        assert (row.id, row.owner, row.disabled_at, row.limits) == ("demo", "abc", None, {})
        assert connection.execute(select(prefixes.c.name)).scalar_one() == "e2e"
    with catalog.write() as (connection, epoch):
        connection.execute(insert(tenants).values(id="new", owner="new", created_at=0))
        assert epoch == 42
    catalog.close()


def test_a_program_of_the_first_release_refuses_the_new_tables(url: str) -> None:
    migrate(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(select(catalog_epoch.c.schema_version)) == 2
    engine.dispose()


def test_tables_of_a_later_program_are_refused(url: str, engine: Engine) -> None:
    migrate(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for opening in (Database, migrate):
        with pytest.raises(PolyprefixError, match="revision 9999, which a later version"):
            opening(url)


def test_an_upgrade_that_fails_midway_changes_nothing(
    first_release: Engine, url: str, tmp_path: Path
) -> None:
    with first_release.begin() as connection:
        # the second revision makes a table of this name
        connection.execute(text("CREATE TABLE usage_hours (other INTEGER)"))
    before = dump(tmp_path)
    with pytest.raises(Exception, match="usage_hours"):
        migrate(url)
    assert dump(tmp_path) == before


def dump(folder: Path) -> list[str]:
    connection = sqlite3.connect(folder / "catalog.sqlite3")
    lines = list(connection.iterdump())
    connection.close()
    return lines
