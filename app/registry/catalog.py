"""The catalog's database: connections, transactions and the epoch.

Knows nothing about prefixes or files beyond the tables of `schema`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateIndex, CreateTable

from app.errors import PolyprefixError, Unavailable
from app.registry.faults import catalog_faults, storage_faults
from app.registry.schema import SCHEMA_VERSION, catalog_epoch, metadata

_BUSY_TIMEOUT_S = 10
_WRITER_TIMEOUT_S = 30
_EPOCH = select(catalog_epoch.c.epoch)


class _DriverConnection(Protocol):
    """What is used of a raw `sqlite3.Connection`."""

    isolation_level: str | None

    def execute(self, statement: str) -> Any:
        """Runs one statement."""

    def close(self) -> None:
        """Ends the connection."""


class Catalog:
    """Transactions over one database. Thread-safe; one writer at a time."""

    def __init__(self, url: str) -> None:
        """Opens the database (`sqlite:///file` or another SQLAlchemy URL) and makes its tables.

        PolyprefixError if the catalog was made by a later version of this program.
        """
        self._engine = _make_engine(make_url(url))
        self._writer = threading.Lock()
        with catalog_faults():
            self._prepare()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state and changes nothing."""
        with catalog_faults(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[tuple[Connection, int]]:
        """A transaction and the epoch that it makes; committed durably at the end of the block.

        Writers follow one another, here by a lock and between processes by the epoch's row.
        Unavailable if the turn does not come, InsufficientStorage if the disk takes no more.
        """
        if not self._writer.acquire(timeout=_WRITER_TIMEOUT_S):
            raise Unavailable("the catalog is busy: too many writers")
        try:
            with catalog_faults(), self._engine.begin() as connection:
                connection.execute(update(catalog_epoch).values(epoch=catalog_epoch.c.epoch + 1))
                yield connection, read_epoch(connection)
        finally:
            self._writer.release()

    def epoch(self) -> int:
        """How many writing transactions the catalog has seen."""
        with self.read() as connection:
            return read_epoch(connection)

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    def _prepare(self) -> None:
        if inspect(self._engine).has_table(catalog_epoch.name):
            with self._engine.connect() as connection:
                found = connection.scalar(select(catalog_epoch.c.schema_version))
        else:
            found = None
        if found is None:
            self._create_tables()
        elif found > SCHEMA_VERSION:
            message = f"the catalog has schema {found}; this version knows up to {SCHEMA_VERSION}"
            raise PolyprefixError(message)

    def _create_tables(self) -> None:
        with self._engine.begin() as connection:
            for table in metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))
        first = {"id": 1, "epoch": 0, "schema_version": SCHEMA_VERSION}
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(catalog_epoch).values(first))
        except IntegrityError:
            return  # another process that starts at the same time was first


def read_epoch(connection: Connection) -> int:
    """The epoch that this transaction sees."""
    return connection.execute(_EPOCH).scalar_one()


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if not url.database or url.database == ":memory:":
        raise PolyprefixError("the catalog needs a file: sqlite:///folder/catalog.sqlite3")
    _make_private_file(Path(url.database))
    engine = create_engine(
        url, connect_args={"timeout": _BUSY_TIMEOUT_S}, pool_timeout=_BUSY_TIMEOUT_S
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private_file(path: Path) -> None:
    """The database file, readable by its user alone; SQLite gives its companions the same mode."""
    with storage_faults(f"creating the catalog {path}"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _set_up_sqlite(connection: _DriverConnection, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions by itself
    try:
        for setting in (
            f"busy_timeout = {_BUSY_TIMEOUT_S * 1000}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {setting}")
    except Exception:
        connection.close()
        raise


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
