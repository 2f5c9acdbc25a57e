"""How a process learns what others have written to the catalog.

Caches subscribe; whoever polls makes them forget what has changed. Knows nothing about what caches
hold.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from app.errors import PolyprefixError
from app.registry.catalog import Catalog
from app.registry.changes import Change, read_changes, read_epoch

Listener = Callable[[int, Sequence[Change] | None], None]
"""Told an epoch and what has changed up to it since the last one that it was told, None if that may
be anything; must not raise."""


class ChangeFeed:
    """How recently this process has looked at the catalog, and who wants to know. Thread-safe.

    What listeners keep is true as of `epoch`. It may be used while `fresh`: `check_s` seconds after
    the last look, or `stale_s` while the catalog does not answer.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        check_s: float = 0.9,
        stale_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds."""
        self._catalog = catalog
        self._check_s, self._stale_s = check_s, stale_s
        self._clock = clock
        self._listeners: list[Listener] = []
        self._epoch = -1
        self._seen_at = float("-inf")
        self._failing = False
        self._asking = 0
        self._doubts = 0
        self._lock = threading.RLock()

    @property
    def epoch(self) -> int:
        """The epoch of the last look, -1 before the first."""
        return self._epoch

    def subscribe(self, listener: Listener) -> None:
        """Tell `listener` of every change from now on."""
        with self._lock:
            self._listeners.append(listener)
            listener(self._epoch, None)

    def fresh(self) -> bool:
        """Whether what listeners keep may be used without another look."""
        unanswered = self._failing or self._asking > 0
        bound = self._stale_s if unanswered else self._check_s
        return self._clock() - self._seen_at < bound

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

    def observe(self, connection: Connection) -> int:
        """Takes note of what this reading transaction sees; its epoch."""
        epoch = read_epoch(connection)
        seen = self._epoch
        if epoch > seen:
            changes = read_changes(connection, seen, epoch) if seen >= 0 else None
            self._advance(epoch, changes)
        return epoch

    def written(self) -> None:
        """Notices what this process has just written; if that fails, at the next use."""
        try:
            self.poll()
        except PolyprefixError:
            self.doubt()

    def doubt(self) -> None:
        """A write ended in an unknown state: the catalog is to be asked before the next use."""
        with self._lock:
            self._doubts += 1
            self._seen_at = float("-inf")

    def _advance(self, epoch: int, changes: Sequence[Change] | None) -> None:
        with self._lock:
            if epoch <= self._epoch:
                return  # another thread has told them; of changes told twice no harm comes
            self._epoch = epoch
            for listener in self._listeners:
                listener(epoch, changes)
