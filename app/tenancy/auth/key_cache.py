"""Keys as the catalog had them when it was last looked at, so that a warm request asks nobody.

Entries are true as of the change feed's last look and forgotten when their key or tenant changes.
Knows nothing about SQL, secrets or HTTP.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from app.db.change_log import Change, ChangeKind
from app.tenancy.auth.principal import Principal


@dataclass(slots=True)
class Entry:
    """A key that may be accepted: its digest, when it is valid, who its bearer is.

    Times are in seconds since 1970. `noted_at` is when its use was last noted down.
    """

    digest: str
    not_before: int | None
    expires_at: int | None
    principal: Principal
    noted_at: float

    def is_valid(self, now: float) -> bool:
        """Whether it may be used now."""
        begun = self.not_before is None or self.not_before <= now
        return begun and (self.expires_at is None or now < self.expires_at)


class KeyCache:
    """Bounded and thread-safe; kids of no key have a place of their own, so that a flood of them
    displaces nothing that is known."""

    def __init__(self, *, known: int = 65_536, unknown: int = 4096) -> None:
        """`known` and `unknown` bound the entries."""
        self._known: OrderedDict[str, Entry] = OrderedDict()
        self._unknown: OrderedDict[str, None] = OrderedDict()
        self._limits = known, unknown
        self._by_tenant: defaultdict[str, set[str]] = defaultdict(set)
        self._epoch = -1
        self._lock = threading.Lock()

    def get(self, kid: str) -> tuple[bool, Entry | None]:
        """(True, entry), (True, None) if there is no such key, or (False, None) if the catalog
        must be asked."""
        with self._lock:
            entry = self._known.get(kid)
            if entry is not None:
                self._known.move_to_end(kid)
                return True, entry
            if kid in self._unknown:
                self._unknown.move_to_end(kid)
                return True, None
            return False, None

    def is_refused(self, kid: str) -> bool:
        """Whether the catalog was asked lately for a key of this kid that was refused."""
        with self._lock:
            return kid in self._unknown

    def refuse(self, kid: str) -> None:
        """Remember that a wrong key of a known kid was refused after the catalog was asked."""
        with self._lock:
            if kid in self._known:
                self._note_unknown(kid)

    def put(self, kid: str, entry: Entry | None, epoch: int) -> None:
        """Keeps an answer that a transaction of this epoch has seen, unless it is outdated."""
        with self._lock:
            if epoch != self._epoch:
                return
            if entry is None:
                self._note_unknown(kid)
                return
            self._known[kid] = entry
            self._by_tenant[entry.principal.tenant].add(kid)
            if len(self._known) > self._limits[0]:
                self._drop(next(iter(self._known)))

    def forget(self, epoch: int, changes: Sequence[Change] | None) -> None:
        """Drops what has changed up to this epoch; everything if that is not known."""
        with self._lock:
            self._epoch = epoch
            if changes is None:
                self._known.clear()
                self._by_tenant.clear()
                self._unknown.clear()
                return
            for change in changes:
                if change.kind is ChangeKind.KEY:
                    self._drop(change.name)
                elif change.kind is ChangeKind.TENANT:
                    for kid in tuple(self._by_tenant.get(change.tenant, ())):
                        self._drop(kid)
                    # keys that were refused with their tenant are among the unknown ones
                    self._unknown.clear()

    def _note_unknown(self, kid: str) -> None:
        self._unknown[kid] = None
        if len(self._unknown) > self._limits[1]:
            self._unknown.popitem(last=False)

    def _drop(self, kid: str) -> None:
        self._unknown.pop(kid, None)
        entry = self._known.pop(kid, None)
        if entry is None:
            return
        kids = self._by_tenant[entry.principal.tenant]
        kids.discard(kid)
        if not kids:
            del self._by_tenant[entry.principal.tenant]
