"""What references stood for when the catalog was last looked at, so that resolving is cheap.

An entry is true as of the change feed's last look, and forgotten when its prefix changes; entries
of other prefixes stay. Knows nothing about SQL.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import TypeVar

from app.prefix.reference import PrefixReference
from app.registry.changes import Change, ChangeKind
from app.registry.records import Version

Key = tuple[str, PrefixReference]
"""Who asks, for what."""
Entry = TypeVar("Entry")
_Name = tuple[str, str]
"""A prefix: its tenant and its name."""


class ResolveCache:
    """Bounded and thread-safe; unknown references have a place of their own, so that a flood of
    them displaces nothing that is known."""

    def __init__(self, *, known: int = 131_072, unknown: int = 2048) -> None:
        """`known` and `unknown` bound the entries."""
        self._known: OrderedDict[Key, Version] = OrderedDict()
        self._unknown: OrderedDict[Key, None] = OrderedDict()
        self._limits = known, unknown
        self._by_name: defaultdict[_Name, set[Key]] = defaultdict(set)
        self._epoch = -1
        self._lock = threading.Lock()

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
        """Keeps an answer that a transaction of this epoch has seen, unless it is outdated."""
        with self._lock:
            if epoch != self._epoch:
                return
            self._by_name[_name_of(key)].add(key)
            if version is None:
                self._keep(self._unknown, key, None, self._limits[1])
            else:
                self._keep(self._known, key, version, self._limits[0])

    def forget(self, epoch: int, changes: Sequence[Change] | None) -> None:
        """Drops what has changed up to this epoch; everything if that is not known."""
        with self._lock:
            self._epoch = epoch
            if changes is None or any(change.kind is ChangeKind.TENANT for change in changes):
                self._known.clear()
                self._unknown.clear()
                self._by_name.clear()
                return
            for change in changes:
                for key in self._by_name.pop((change.tenant, change.name), ()):
                    self._known.pop(key, None)
                    self._unknown.pop(key, None)

    def _keep(self, entries: OrderedDict[Key, Entry], key: Key, value: Entry, limit: int) -> None:
        entries[key] = value
        entries.move_to_end(key)
        if len(entries) > limit:
            dropped, _ = entries.popitem(last=False)
            named = self._by_name[_name_of(dropped)]
            named.discard(dropped)
            if not named:
                del self._by_name[_name_of(dropped)]


def _name_of(key: Key) -> _Name:
    tenant, reference = key
    return reference.tenant or tenant, reference.name
