"""Reading and writing transactions of one process, whose notes its caches follow.

Knows nothing about what is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection

from app.db.change_feed import ChangeFeed
from app.db.change_log import Change, ChangeKind, note, read_changes
from app.db.database import Actor, Database
from app.prefix.reference import check_name


class Transactions:
    """How every part of a registry reaches the catalog. Thread-safe."""

    def __init__(self, catalog: Database, feed: ChangeFeed, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._catalog = catalog
        self._feed = feed
        self.clock = clock

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state and changes nothing."""
        return self._catalog.read()

    @contextmanager
    def writing(self, actor: Actor | None = None) -> Iterator[tuple[Connection, int]]:
        """A writing transaction, as of `Database.write`; this process sees its changes at once."""
        changes: list[Change] | None = None
        is_ending = False
        try:
            with self._catalog.write(actor) as (connection, epoch):
                yield connection, epoch
                changes = read_changes(connection, epoch - 1, epoch)
                is_ending = True
        except BaseException:
            if is_ending:  # what fails before is never committed
                self._feed.doubt()
            raise
        self._feed.written(changes)

    @contextmanager
    def changing(
        self, tenant: str, name: str, actor: Actor | None = None
    ) -> Iterator[tuple[Connection, int]]:
        """A writing transaction that changes one prefix of the tenant, and nothing else that
        caches hold, made for `actor`. InvalidRequest if the name breaks the rules."""
        check_name(name)
        with self.writing(actor) as (connection, epoch):
            note(connection, epoch, ChangeKind.PREFIX, tenant, name)
            yield connection, epoch

    def now(self) -> int:
        """Seconds since 1970."""
        return int(self.clock())
