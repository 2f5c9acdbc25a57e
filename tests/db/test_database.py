"""The catalog's database: durable settings, one epoch per write, one writer at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from app.db import database as module
from app.db.database import Database
from app.db.schema import catalog_epoch, tenants
from app.errors import Conflict, InsufficientStorage, PolyprefixError, Unavailable


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/catalog.sqlite3"


@pytest.fixture
def catalog(url: str) -> Iterator[Database]:
    catalog = Database(url)
    yield catalog
    catalog.close()


def tenant(name: str) -> dict[str, object]:
    return {"id": name, "owner": name, "created_at": 0}


def test_every_connection_is_durable_and_checks_references(catalog: Database) -> None:
    for _ in range(2):
        with catalog.read() as connection:
            settings = {
                name: connection.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert settings == {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "busy_timeout": 10_000,
        }


def test_the_file_is_private_and_its_folder_made(catalog: Database, tmp_path: Path) -> None:
    assert catalog.epoch() == 0
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    assert modes == {0o600}
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_every_write_raises_the_epoch_by_one(catalog: Database) -> None:
    for expected in (1, 2, 3):
        with catalog.write() as (_, epoch):
            assert epoch == expected
        assert catalog.epoch() == expected


def test_a_write_that_fails_changes_nothing(catalog: Database) -> None:
    def failing() -> None:
        with catalog.write() as (connection, _):
            connection.execute(insert(tenants).values(tenant("half")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert catalog.epoch() == 0
    with catalog.read() as connection:
        assert connection.execute(select(tenants)).all() == []


def test_a_reader_sees_one_state_while_others_write(catalog: Database) -> None:
    with catalog.read() as connection:
        before = connection.scalar(select(catalog_epoch.c.epoch))
        with catalog.write() as (writing, _):
            writing.execute(insert(tenants).values(tenant("new")))
        assert connection.scalar(select(catalog_epoch.c.epoch)) == before
        assert connection.execute(select(tenants)).all() == []
    assert catalog.epoch() == 1


def test_writers_follow_one_another(url: str, catalog: Database) -> None:
    other = Database(url)
    seen: list[int] = []

    def writing(through: Database) -> None:
        for _ in range(20):
            with through.write() as (_, epoch):
                seen.append(epoch)

    threads = [threading.Thread(target=writing, args=(each,)) for each in (catalog, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(seen) == list(range(1, 81))


def test_several_processes_may_start_at_once(url: str) -> None:
    opened: list[Database] = []
    threads = [threading.Thread(target=lambda: opened.append(Database(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [catalog.epoch() for catalog in opened] == [0] * 4
    for catalog in opened:
        catalog.close()


def test_a_catalog_needs_a_file() -> None:
    with pytest.raises(PolyprefixError, match="needs a file"):
        Database("sqlite://")


def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    (tmp_path / "catalog").write_bytes(b"something else, long enough to be a header" * 100)
    with pytest.raises(PolyprefixError, match="cannot be read"):
        Database(f"sqlite:///{tmp_path}/catalog")


def test_a_full_disk_is_insufficient_storage(catalog: Database) -> None:
    def filling() -> None:
        with catalog.write() as (connection, _):
            pages = connection.scalar(text("PRAGMA page_count"))
            connection.execute(text(f"PRAGMA max_page_count = {pages}"))
            for number in range(2000):
                connection.execute(insert(tenants).values(tenant(f"{number:060}")))

    with pytest.raises(InsufficientStorage, match="SQLITE_FULL"):
        filling()
    with catalog.read() as connection:
        connection.execute(text("PRAGMA max_page_count = 1000000"))
        assert connection.execute(select(tenants)).all() == []
    with catalog.write() as (connection, _):
        connection.execute(insert(tenants).values(tenant("after")))
    assert catalog.epoch() == 1


def test_a_database_that_stays_locked_is_unavailable(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUSY_TIMEOUT_S", 0)
    catalog = Database(url)
    lock = sqlite3.connect(tmp_path / "data/catalog.sqlite3", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="SQLITE_BUSY"), catalog.write():
        pass
    assert catalog.epoch() == 0
    lock.execute("ROLLBACK")
    lock.close()
    with catalog.write() as (_, epoch):
        assert epoch == 1
    catalog.close()


def test_too_many_writers_are_unavailable(
    catalog: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WRITER_TIMEOUT_S", 0)
    with catalog.write(), pytest.raises(Unavailable), catalog.write():
        pass
    assert catalog.epoch() == 1


def test_two_rows_with_one_key_are_a_conflict(catalog: Database) -> None:
    with pytest.raises(Conflict), catalog.write() as (connection, _):
        connection.execute(insert(tenants), [tenant("twice"), tenant("twice")])
    assert catalog.epoch() == 0


def test_our_own_mistakes_in_sql_are_not_taken_for_the_disks(catalog: Database) -> None:
    with pytest.raises(Exception, match="no such table") as caught, catalog.read() as connection:
        connection.execute(text("SELECT * FROM missing"))
    assert not isinstance(caught.value, PolyprefixError)
