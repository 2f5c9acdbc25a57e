"""How a process learns what others have written to the catalog.

Caches subscribe to a feed. Whoever polls the feed makes them forget what has changed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from sqlalchemy import Connection

from app.db.change_log import EPOCH, Change, read_changes
from app.errors import PolyprefixError

Listener = Callable[[int, Sequence[Change] | None], None]
"""Gets an epoch and the changes up to it since its last call, None if anything may have changed;
must not raise."""


class Readable(Protocol):
    """A catalog, as far as a feed needs it."""

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state and changes nothing."""


class ChangeFeed:
    """How recently this process has looked at the catalog, and who wants to know. Thread-safe.

    What listeners keep is true as of `epoch`. It may be used while `fresh`: `check_s` seconds after
    the last look, or `stale_s` while the catalog does not answer. For that long, the writes of
    others may go unseen.
    """

    def __init__(
        self,
        catalog: Readable,
        *,
        check_s: float = 0.9,
        stale_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stale_s = stale_s
        self._catalog = catalog
        self._check_s = check_s
        self._clock = clock
        self._listeners: list[Listener] = []
        self._epoch = -1
        self._seen_at = float("-inf")
        self._failing = False
        self._asking = 0
        self._doubts = 0
        self._doubted = False
        self._lock = threading.RLock()

    @property
    def epoch(self) -> int:
        """The epoch of the last look, -1 before the first."""
        return self._epoch

    def subscribe(self, listener: Listener) -> None:
        """Tells `listener` of every change from now on."""
        with self._lock:
            self._listeners.append(listener)
            listener(self._epoch, None)

    def fresh(self) -> bool:
        """Whether what listeners keep may be used without another look."""
        age = self._clock() - self._seen_at
        if self._failing or self._asking > 0:
            return age < self.stale_s
        return not self._doubted and age < self._check_s

    def refresh(self) -> None:
        """Looks at the catalog unless what listeners keep is fresh.

        Raises what the catalog raises if it does not answer and the last look is too old.
        """
        if self.fresh():
            return
        try:
            self.poll()
        except PolyprefixError:
            if not self.fresh():
                raise

    def poll(self) -> None:
        """Looks at the catalog now; raises what the catalog raises."""
        with self._lock:
            asked_at, doubts = self._clock(), self._doubts
            self._asking += 1
        failed = True
        try:
            with self._catalog.read() as connection:
                self.observe(connection)
            failed = False
        finally:
            with self._lock:
                self._asking -= 1
                self._failing = failed
                if not failed and doubts == self._doubts:
                    self._seen_at = max(self._seen_at, asked_at)
                    self._doubted = False

    def observe(self, connection: Connection) -> int:
        """Takes note of what this reading transaction sees; its epoch."""
        epoch: int = connection.execute(EPOCH).scalar_one()
        seen = self._epoch
        if epoch > seen:
            changes = read_changes(connection, seen, epoch) if seen >= 0 else None
            self._advance(epoch, changes)
        return epoch

    def written(self, changes: Sequence[Change] | None) -> None:
        """Notices what this process has just written; `changes` are None if that may be anything.

        If the catalog does not answer any more, listeners forget these changes alone.
        """
        try:
            self.poll()
        except PolyprefixError:
            self.doubt()
            with self._lock:
                for listener in self._listeners:
                    listener(self._epoch, changes)

    def doubt(self) -> None:
        """Notices a write that ended in an unknown state: the next use asks the catalog.

        Nobody was told that the write has succeeded, so it may be seen as late as those of others.
        """
        with self._lock:
            self._doubts += 1
            self._doubted = True

    def _advance(self, epoch: int, changes: Sequence[Change] | None) -> None:
        with self._lock:
            if epoch <= self._epoch:
                return  # another thread has told them; changes may be told twice without harm
            self._epoch = epoch
            for listener in self._listeners:
                listener(epoch, changes)
