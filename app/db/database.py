"""The catalog's database: connections, reading and writing transactions, and their feed."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.db.change_feed import ChangeFeed
from app.db.change_log import Change, begin_epoch, end_epoch, read_changes, read_epoch
from app.db.circuit_breaker import ProbingBreaker
from app.db.errors import catalog_faults, is_lost, storage_faults
from app.db.migrate import is_current, upgrade
from app.db.postgres import make_postgres_engine
from app.db.schema import catalog_epoch
from app.errors import PolyprefixError, Unavailable

_BUSY_TIMEOUT_S = 10
_WRITER_TIMEOUT_S = 30
_WRITING = {"writing": True}
_MIGRATION_LOCK = 0x706F6C79  # any number that nobody else locks in this database


class Actor(Protocol):
    """On whose behalf a writing transaction changes the catalog."""

    def record(self, connection: Connection) -> None:
        """Adds the changes of this transaction to the audit log, as a part of the transaction."""


class Database:
    """Transactions over one database. Thread-safe; one writer at a time.

    `feed` tells caches what this process and others have written. Calls of a database that does not
    answer fail after seconds, and then at once until it answers again.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Opens the database: `sqlite:///file`, whose tables are brought up to date, or another
        SQLAlchemy URL, whose tables must be.

        PolyprefixError if they are not, or if a later version of this program has made them.
        `clock`, the feed's, gives seconds.
        """
        self.feed = ChangeFeed(self, clock=clock)
        self.engine = _make_engine(_parsed(url))
        self._writer = threading.Lock()
        self._breaker = ProbingBreaker("the catalog", is_lost, self._probe)
        try:
            # revisions are files of the program, which a disk may fail to give
            with storage_faults("preparing the catalog"):
                self._prepare(_parsed(url))
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state and changes nothing."""
        with self._connected() as connection:
            if connection.dialect.name == "postgresql":
                # SQLite's readers see one state by themselves
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self, actor: Actor | None = None) -> Iterator[tuple[Connection, int]]:
        """A transaction and the epoch that it makes; committed durably at the end of the block.

        At the end, `actor` records what has changed; without one, nothing is recorded. This
        process's caches follow at once. Writers take turns, here by a lock and between processes by
        the epoch's row. Unavailable if the turn does not come, InsufficientStorage if the disk
        takes no more.
        """
        changes: list[Change] | None = None
        is_ending = False
        try:
            with self._writing() as connection:
                epoch = begin_epoch(connection)
                yield connection, epoch
                is_ending = True
                if actor is not None:
                    actor.record(connection)
                end_epoch(connection, epoch)
                changes = read_changes(connection, epoch - 1, epoch)
        except BaseException:
            if is_ending:  # a failure before the end is never committed
                self.feed.doubt()
            raise
        self.feed.written(changes)

    @contextmanager
    def append(self) -> Iterator[Connection]:
        """A writing transaction of which no cache needs to know: usage, audit; errors as `write`.

        Processes take no turns here, so it must not touch what `write` changes.
        """
        with self._writing() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if not self._writer.acquire(timeout=_WRITER_TIMEOUT_S):
            raise Unavailable("the catalog is busy: too many writers")
        try:
            with self._connected() as connection:
                connection = connection.execution_options(**_WRITING)
                with connection.begin():
                    yield connection
        finally:
            self._writer.release()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with catalog_faults(), self._breaker.watched(), self.engine.connect() as connection:
            yield connection

    def epoch(self) -> int:
        """How many writing transactions the catalog has seen."""
        with self.read() as connection:
            return read_epoch(connection)

    def close(self) -> None:
        self._breaker.stop()
        self.engine.dispose()

    def _probe(self, _attempt: int) -> None:
        with self.engine.connect() as connection:
            connection.detach()  # a probe that outlives `close` leaves nothing in the pool
            connection.execute(select(1))

    def _prepare(self, url: URL) -> None:
        with self._connected() as connection:
            ready = is_current(connection)
        if ready:
            return
        if url.get_backend_name() != "sqlite":
            raise PolyprefixError(
                "the catalog's tables are missing or older than this program: run "
                "`polyprefix migrate` once, with the same database URL, before replicas start"
            )
        migrate(url)


def migrate(url: str | URL) -> tuple[str | None, str]:
    """Brings a catalog's tables to the state that this program knows; (revision before, after).

    Processes that migrate at the same time follow one another. PolyprefixError if a later version
    of this program has made the tables.
    """
    engine = _make_engine(_parsed(url), bounded=False)
    try:
        with catalog_faults(), engine.connect() as connection:
            connection = connection.execution_options(**_WRITING)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                before, after = upgrade(connection)
                if connection.execute(select(catalog_epoch.c.id)).first() is None:
                    first = {"id": 1, "epoch": 0, "schema_version": 2}
                    connection.execute(insert(catalog_epoch).values(first))
                return before, after
    finally:
        engine.dispose()


def _make_engine(url: URL, *, bounded: bool = True) -> Engine:
    """`bounded`: whether a database on the network must answer within seconds."""
    if url.get_backend_name() == "postgresql":
        return make_postgres_engine(url.set(drivername="postgresql+psycopg"), bounded=bounded)
    if url.get_backend_name() != "sqlite":
        raise PolyprefixError("the catalog's URL begins with sqlite:/// or postgresql://")
    if not url.database or url.database == ":memory:":
        raise PolyprefixError("the catalog needs a file: sqlite:///folder/catalog.sqlite3")
    _make_private_file(Path(url.database))
    engine = create_engine(
        url, connect_args={"timeout": _BUSY_TIMEOUT_S}, pool_timeout=_BUSY_TIMEOUT_S
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _parsed(url: str | URL) -> URL:
    try:
        return make_url(url)
    except ArgumentError as fault:  # its message repeats the text, which may hold a password
        raise PolyprefixError("the catalog's URL is not understood") from fault


def _make_private_file(path: Path) -> None:
    """The database file, readable by its user alone; SQLite gives its companions the same mode."""
    with storage_faults(f"creating the catalog {path}"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
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
    # a reader that turned into a writer midway could not wait for its turn
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
