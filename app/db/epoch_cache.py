"""A cache of what the catalog answers, which forgets what the change feed says has changed."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from app.db.change_log import Change, ChangeKind
from app.db.database import Database

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

ANY_TENANT = Change(ChangeKind.TENANT, "", "")
"""What an answer depends on that may change with any tenant."""


class EpochCache(Generic[Key, Value]):
    """Values by key, and keys that are known to have no value. Thread-safe and bounded.

    An entry is true as of the feed's last look. Keys without a value have a place of their own, so
    that a flood of them displaces no value. `depends_on(key, value)` lists the changes after which
    the entry may be wrong; changes of keys are listed without their tenant.
    """

    def __init__(
        self,
        catalog: Database,
        depends_on: Callable[[Key, Value | None], Iterable[Change]],
        *,
        known: int,
        unknown: int,
    ) -> None:
        """`known` and `unknown` bound the keys with and without a value."""
        self._catalog, self._feed, self._depends_on = catalog, catalog.feed, depends_on
        self._limits = known, unknown
        self._known: OrderedDict[Key, Value] = OrderedDict()
        self._unknown: OrderedDict[Key, None] = OrderedDict()
        self._dependents: defaultdict[Change, set[Key]] = defaultdict(set)
        self._epoch = -1
        self._lock = threading.Lock()
        self._feed.subscribe(self._forget)

    def get_fresh(self, key: Key) -> tuple[bool, Value | None]:
        """(True, its value), (True, None) if it has none, or (False, None) without a look at the
        catalog being needed: no I/O."""
        return self.get(key) if self._feed.fresh() else (False, None)

    def get(self, key: Key) -> tuple[bool, Value | None]:
        """As `get_fresh`, however old the feed's last look is."""
        with self._lock:
            value = self._known.get(key)
            if value is not None:
                self._known.move_to_end(key)
                return True, value
            if key in self._unknown:
                self._unknown.move_to_end(key)
                return True, None
            return False, None

    def read(self, key: Key, query: Callable[[Connection], Value | None]) -> Value | None:
        """What `query` answers, kept unless the catalog has changed meanwhile."""
        with self._catalog.read() as connection:
            epoch = self._feed.observe(connection)
            value = query(connection)
        self.put(key, value, epoch)
        return value

    def put(self, key: Key, value: Value | None, epoch: int) -> None:
        """Keeps an answer that a transaction of this epoch has seen, unless it is outdated."""
        with self._lock:
            if epoch == self._epoch:
                self._keep(key, value)

    def is_unknown(self, key: Key) -> bool:
        """Whether the key is kept as one without a value; it may have one as well."""
        with self._lock:
            return key in self._unknown

    def note_unknown(self, key: Key) -> None:
        """Keeps a key that has a value as one without, too, until it changes."""
        with self._lock:
            if key in self._known:
                self._keep(key, None)

    def debug_state(self) -> dict[str, Any]:
        """For tests: keys with and without a value, and the changes that each waits for."""
        with self._lock:
            return {
                "known": list(self._known),
                "unknown": list(self._unknown),
                "awaited": {change: set(keys) for change, keys in self._dependents.items()},
            }

    def _forget(self, epoch: int, changes: Sequence[Change] | None) -> None:
        with self._lock:
            self._epoch = epoch
            if changes is None:
                for kept in (self._known, self._unknown, self._dependents):
                    kept.clear()
                return
            for change in changes:
                if change.kind is ChangeKind.KEY:
                    change = Change(change.kind, "", change.name)
                self._drop(self._dependents.get(change, ()))
                if change.kind is ChangeKind.TENANT:
                    self._drop(self._dependents.get(ANY_TENANT, ()))

    def _keep(self, key: Key, value: Value | None) -> None:
        for change in self._depends_on(key, value):
            self._dependents[change].add(key)
        entries: OrderedDict[Key, Any] = self._unknown if value is None else self._known
        entries[key] = value
        entries.move_to_end(key)
        if len(entries) > self._limits[value is None]:
            self._drop([next(iter(entries))])

    def _drop(self, keys: Iterable[Key]) -> None:
        for key in list(keys):
            value = self._known.pop(key, None)
            self._unknown.pop(key, None)
            for change in {*self._depends_on(key, value), *self._depends_on(key, None)}:
                dependents = self._dependents[change]
                dependents.discard(key)
                if not dependents:
                    del self._dependents[change]
