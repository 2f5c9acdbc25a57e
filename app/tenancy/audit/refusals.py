"""Refusals that get no record of their own: counted by minute, reason and who was refused.

So nobody can fill the audit log with calls that are not allowed: callers without a key are always
counted, callers with one from the 61st refusal in a minute on.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from app.addresses import network_of

SINGLY_PER_MINUTE = 60
"""Refusals of one key that get a record each."""
MAX_KEYS = 1_000
"""Counts that are kept apart; further ones are merged."""
OTHERS = "others"
_MAX_MERGED = 100
"""Minutes whose merged counts are kept apart."""


class Refusal(NamedTuple):
    """What refusals are counted by. `minute` is its beginning in seconds since 1970.

    `network` is the caller's where there is no key.
    """

    minute: int
    tenant: str
    kid: str | None
    network: str | None
    reason: str


class Refusals:
    """Counts of refusals; thread-safe and bounded."""

    def __init__(self, *, max_keys: int = MAX_KEYS, singly: int = SINGLY_PER_MINUTE) -> None:
        self._max_keys, self._singly = max_keys, singly
        self._lock = threading.Lock()
        self._counts: dict[Refusal, int] = {}
        self._minute, self._seen = 0, dict[tuple[str, str | None], int]()

    def allows_record(self, tenant: str, kid: str | None, now: float) -> bool:
        """Whether this key's refusal may have a record of its own; counts it as one that has."""
        with self._lock:
            if (minute := _minute(now)) != self._minute:
                self._minute, self._seen = minute, {}
            seen = self._seen.get((tenant, kid), 0)
            if seen >= self._singly or (not seen and len(self._seen) >= self._max_keys):
                return False
            self._seen[tenant, kid] = seen + 1
            return True

    def add(
        self, now: float, reason: str, *, tenant: str = "", kid: str | None = None, peer: str | None
    ) -> None:
        """Count one refusal."""
        network = None if tenant else network_of(peer)
        self.restore({Refusal(_minute(now), tenant, kid, network, reason): 1})

    def take(self, before: float | None = None) -> dict[Refusal, int]:
        """The counts of minutes that ended before this time, or all; they are not kept."""
        with self._lock:
            limit = None if before is None else _minute(before)
            taken = {
                key: count
                for key, count in self._counts.items()
                if limit is None or key.minute < limit
            }
            self._counts = {key: n for key, n in self._counts.items() if key not in taken}
            return taken

    def restore(self, counts: dict[Refusal, int]) -> None:
        """Add counts, those that could not be written for example."""
        with self._lock:
            for key, count in counts.items():
                if key not in self._counts and len(self._counts) >= self._max_keys:
                    key = self._merged(key)
                self._counts[key] = self._counts.get(key, 0) + count

    def _merged(self, key: Refusal) -> Refusal:
        """All of a minute, and once there are too many of those, all of any."""
        merged = Refusal(key.minute, "", None, OTHERS, OTHERS)
        if merged in self._counts or len(self._counts) < self._max_keys + _MAX_MERGED:
            return merged
        return Refusal(0, "", None, OTHERS, OTHERS)


def _minute(now: float) -> int:
    return int(now) // 60 * 60
