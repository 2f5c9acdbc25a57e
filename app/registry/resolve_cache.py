"""What references stood for when the catalog was last looked at, so that resolving is cheap.

An entry is true as of the change feed's last look, and forgotten when its prefix changes; entries
of other prefixes stay. Knows nothing about SQL.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

from app.db.change_log import Change, ChangeKind
from app.prefix.reference import PrefixReference
from app.registry.splits import Split
from app.registry.types import Resolved

Key = tuple[str, PrefixReference]
"""Who asks, for what."""
Answer = TypeVar("Answer")
_Names = dict[str, set[Key]]
"""The entries about each prefix of one tenant."""


class ResolveCache:
    """Bounded and thread-safe; unknown references have a place of their own, so that a flood of
    them displaces nothing that is known."""

    def __init__(self, *, known: int = 131_072, unknown: int = 2048) -> None:
        """`known` and `unknown` bound the entries."""
        self._known: OrderedDict[Key, Resolved | Split] = OrderedDict()
        self._unknown: OrderedDict[Key, None] = OrderedDict()
        self._limits = known, unknown
        self._by_owner: defaultdict[str, _Names] = defaultdict(dict)
        self._by_guest: defaultdict[str, set[Key]] = defaultdict(set)
        self._epoch = -1
        self._lock = threading.Lock()

    def get(self, key: Key) -> tuple[bool, Resolved | Split | None]:
        """(True, what it stands for), (True, None) if the reference is known to stand for nothing,
        or (False, None) if the catalog must be asked."""
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return True, found
            if key in self._unknown:
                self._unknown.move_to_end(key)
                return True, None
            return False, None

    def put(self, key: Key, found: Resolved | Split | None, epoch: int) -> None:
        """Keeps an answer that a transaction of this epoch has seen, unless it is outdated."""
        with self._lock:
            if epoch != self._epoch:
                return
            self._index(key)
            if found is None:
                self._keep(self._unknown, key, None, self._limits[1])
            else:
                self._keep(self._known, key, found, self._limits[0])

    def forget(self, epoch: int, changes: Sequence[Change] | None) -> None:
        """Drops what has changed up to this epoch; everything if that is not known."""
        with self._lock:
            self._epoch = epoch
            if changes is None:
                self._known.clear()
                self._unknown.clear()
                self._by_owner.clear()
                self._by_guest.clear()
                return
            for change in changes:
                if change.kind is ChangeKind.PREFIX:
                    self._drop(self._by_owner.get(change.tenant, {}).get(change.name, ()))
                elif change.kind is ChangeKind.TENANT:
                    for keys in list(self._by_owner.get(change.tenant, {}).values()):
                        self._drop(keys)
                    self._drop(self._by_guest.get(change.tenant, ()))

    def _keep(self, entries: OrderedDict[Key, Answer], key: Key, value: Answer, limit: int) -> None:
        entries[key] = value
        entries.move_to_end(key)
        if len(entries) > limit:
            self._drop([next(iter(entries))])

    def _index(self, key: Key) -> None:
        owner = _owner_of(key)
        self._by_owner[owner].setdefault(key[1].name, set()).add(key)
        if owner != key[0]:
            self._by_guest[key[0]].add(key)

    def _drop(self, keys: Iterable[Key]) -> None:
        for key in list(keys):
            self._known.pop(key, None)
            self._unknown.pop(key, None)
            owner, name = _owner_of(key), key[1].name
            named = self._by_owner[owner][name]
            named.discard(key)
            if not named:
                del self._by_owner[owner][name]
            if not self._by_owner[owner]:
                del self._by_owner[owner]
            if owner != key[0]:
                self._by_guest[key[0]].discard(key)
                if not self._by_guest[key[0]]:
                    del self._by_guest[key[0]]


def _owner_of(key: Key) -> str:
    caller, reference = key
    return reference.tenant or caller
