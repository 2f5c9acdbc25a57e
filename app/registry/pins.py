"""Pins as caches follow them: which contents to keep, also when another replica has said so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from app.db.change_feed import ChangeFeed
from app.db.change_log import Change, ChangeKind, read_epoch
from app.db.database import Database
from app.errors import PolyprefixError
from app.registry import versions
from app.registry.types import ContentKey

_MAY_PIN = {ChangeKind.PREFIX, ChangeKind.TENANT}


class PinFollower:
    """Looks at the pins again once something has changed that may concern them. Thread-safe."""

    def __init__(self, catalog: Database, feed: ChangeFeed, limit: int) -> None:
        """`limit` bounds the pins that are told: the ones that were made last."""
        self._catalog, self._feed, self._limit = catalog, feed, limit
        self._changed = threading.Event()
        self._changed_at = -1

    def start(self, wake: Callable[[], None]) -> None:
        """From now on `wake` is called when `look` may find something new; it must not raise."""

        def notice(epoch: int, changes: Sequence[Change] | None) -> None:
            if changes is None or any(change.kind in _MAY_PIN for change in changes):
                self._changed_at = epoch
                self._changed.set()
                wake()

        self._feed.subscribe(notice)

    def look(self) -> tuple[int, tuple[ContentKey, ...]] | None:
        """The epoch, and the contents to keep as of then; None if nothing has changed.

        Raises what the catalog raises, and looks again the next time.
        """
        if not self._changed.is_set():
            return None
        self._changed.clear()
        try:
            with self._catalog.read() as connection:
                return read_epoch(connection), versions.pinned(connection, self._limit)
        except PolyprefixError:
            self._changed.set()
            raise

    def is_outdated(self, epoch: int) -> bool:
        """Whether pins may have changed after this epoch; then another look follows.

        Changes of other kinds don't count: no look follows them, so what was found still holds.
        """
        return self._changed_at > epoch
