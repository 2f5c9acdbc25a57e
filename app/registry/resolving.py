"""What references stood for when the catalog was last looked at, so that resolving is cheap.

An entry is true for one epoch of the catalog. A write in this process ends the epoch at once; a
write in another process is noticed when the epoch's row is read, at most `check_s` later. Knows
nothing about SQL.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from app.prefix.reference import PrefixReference
from app.registry.records import Version

Key = tuple[str, PrefixReference]
Entry = TypeVar("Entry")


class ResolveCache:
    """Bounded and thread-safe; unknown references have a place of their own, so that a flood of
    them displaces nothing that is known."""

    def __init__(
        self,
        *,
        known: int = 16384,
        unknown: int = 2048,
        check_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`known` and `unknown` bound the entries; `clock` gives seconds."""
        self._known: OrderedDict[Key, Version] = OrderedDict()
        self._unknown: OrderedDict[Key, None] = OrderedDict()
        self._limits = known, unknown
        self._check_s = check_s
        self._clock = clock
        self._epoch = -1
        self._fresh_until = clock()
        self._doubts = 0
        self._lock = threading.Lock()

    def fresh(self) -> bool:
        """Whether entries may be used without another look at the catalog's epoch."""
        return self._clock() < self._fresh_until

    def get(self, key: Key) -> tuple[bool, Version | None]:
        """(True, version), (True, None) if the reference is known to stand for nothing, or
        (False, None) if the catalog must be asked."""
        with self._lock:
            version = self._known.get(key)
            if version is not None:
                self._known.move_to_end(key)
                return True, version
            if key in self._unknown:
                self._unknown.move_to_end(key)
                return True, None
            return False, None

    def put(self, key: Key, version: Version | None, epoch: int) -> None:
        """Keeps an answer that a transaction of this epoch has seen."""
        self.advance(epoch)
        with self._lock:
            if epoch != self._epoch:
                return
            if version is None:
                _keep(self._unknown, key, None, self._limits[1])
            else:
                _keep(self._known, key, version, self._limits[0])

    def advance(self, epoch: int) -> None:
        """The catalog is known to be at this epoch or later; a new one empties the cache."""
        with self._lock:
            if epoch > self._epoch:
                self._epoch = epoch
                self._known.clear()
                self._unknown.clear()

    def ticket(self) -> tuple[float, int]:
        """To be taken before the catalog is asked for its epoch, and given to `confirm`."""
        with self._lock:
            return self._clock(), self._doubts

    def confirm(self, epoch: int, ticket: tuple[float, int]) -> None:
        """The catalog was at this epoch, or a later one, when it was asked with this ticket."""
        self.advance(epoch)
        asked_at, doubts = ticket
        with self._lock:
            if doubts == self._doubts:
                self._fresh_until = max(self._fresh_until, asked_at + self._check_s)

    def doubt(self) -> None:
        """A write ended in an unknown state: the catalog is to be asked before the next use."""
        with self._lock:
            self._doubts += 1
            self._fresh_until = self._clock()


def _keep(entries: OrderedDict[Key, Entry], key: Key, value: Entry, limit: int) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > limit:
        entries.popitem(last=False)
