"""Pins as caches follow them: which contents to keep, also when another replica has said so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.db.change_log import Change, ChangeKind, read_epoch
from app.db.database import Database
from app.registry import versions
from app.registry.types import ContentKey

_MAY_PIN = {ChangeKind.PREFIX, ChangeKind.TENANT}


class PinFollower:
    """Knows whether pins may have changed since a look at them. Thread-safe."""

    def __init__(self, catalog: Database, limit: int) -> None:
        """`limit` bounds the pins that are told: the ones that were made last."""
        self._catalog, self._limit = catalog, limit
        self._changed_at = -1

    def start(self, wake: Callable[[], None]) -> None:
        """From now on `wake` is called when `look` may find something new; it must not raise."""

        def notice(epoch: int, changes: Sequence[Change] | None) -> None:
            if changes is None or any(change.kind in _MAY_PIN for change in changes):
                self._changed_at = epoch
                wake()

        self._catalog.feed.subscribe(notice)

    def look(self) -> tuple[int, tuple[ContentKey, ...]]:
        """The epoch, and the contents to keep as of then. Raises what the catalog raises."""
        with self._catalog.read() as connection:
            return read_epoch(connection), versions.pinned(connection, self._limit)

    def is_outdated(self, epoch: int) -> bool:
        """Whether pins may have changed after this epoch; then another look follows.

        Other changes do not count: no look follows them, so what was found still holds.
        """
        return self._changed_at > epoch
