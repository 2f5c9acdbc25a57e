"""What tenants have used, summed in memory and added to the catalog in batches.

Every batch has a number under which the catalog adds it at most once, so that one whose answer was
lost is sent again as it was. While the catalog does not answer, sums are kept and merged. Knows
nothing about requests or HTTP.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence

from app.db.database import Database
from app.tenancy.usage import table
from app.tenancy.usage.totals import HOUR, Batch, UsageKey, UsageTotals

OTHERS = "*"
"""The name under which a tenant's sums are merged when there are too many to tell apart."""

EARLY_KEYS = 1_000
"""So many different sums are written without waiting for the next turn."""
MAX_KEYS = 10_000


class UsageLedger:
    """Sums of one process that are not in the catalog yet. Thread-safe.

    At most `max_keys` sums are told apart: beyond, a tenant's further ones are merged under
    `OTHERS`, and beyond twice as many, requests are counted as `lost`. `on_crowded` is called by
    whoever adds when there is enough to `flush` before the next turn.
    """

    def __init__(
        self,
        catalog: Database,
        *,
        max_keys: int = MAX_KEYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970."""
        self.writer = secrets.token_hex(16)
        self.lost = 0
        self.on_crowded: Callable[[], None] | None = None
        self._catalog, self._max_keys, self._clock = catalog, max_keys, clock
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._sums: dict[UsageKey, UsageTotals] = {}
        self._sent: dict[UsageKey, UsageTotals] = {}
        self._sequence = 0

    def add(
        self, tenant: str, names: Sequence[str], digests: Sequence[str], spent: UsageTotals
    ) -> None:
        """Count what one request has cost; prefixes in their order, none for the base model."""
        hour = int(self._clock()) // HOUR * HOUR
        key = UsageKey(tenant, hour, "+".join(names), ",".join(digests))
        with self._lock:
            sums = self._sums.get(key) or self._room_for(key)
            if sums is None:
                self.lost += spent.requests
                return
            sums.add(spent)
            is_crowded = len(self._sums) >= EARLY_KEYS
        if is_crowded and self.on_crowded is not None:
            self.on_crowded()

    def _room_for(self, key: UsageKey) -> UsageTotals | None:
        """New sums, or those into which they are merged; None if there is no room at all."""
        held = len(self._sums) + len(self._sent)
        if held >= self._max_keys:
            key = UsageKey(key.tenant, key.hour, OTHERS, OTHERS)
            if key not in self._sums and held >= 2 * self._max_keys:
                return None
        return self._sums.setdefault(key, UsageTotals())

    def flush(self) -> None:
        """Add everything to the catalog; raises what the catalog raises, and then nothing is lost.

        A batch whose fate is not known is sent again first, unchanged.
        """
        with self._flushing:
            for _ in range(2):
                batch = self._next_batch()
                if not batch:
                    return
                with self._catalog.append() as connection:
                    table.add_batch(
                        connection, self.writer, self._sequence, batch, int(self._clock())
                    )
                with self._lock:
                    self._sent = {}

    def pending(self) -> list[tuple[int, Batch]]:
        """Copies of what may not be in the catalog yet, with the number of its batch.

        Those are in the catalog whose number is not above the one that the catalog has.
        """
        with self._lock:
            number = self._sequence
            parts = [(number, self._sent), (number + 1, self._sums)]
            return [
                (number, {key: sums.copy() for key, sums in part.items()}) for number, part in parts
            ]

    def prune(self, keep_s: float) -> None:
        """Forget hours that are older than this many seconds, and writers that are long gone."""
        with self._catalog.append() as connection:
            table.prune(connection, int(self._clock()), int(keep_s))

    def _next_batch(self) -> Batch:
        with self._lock:
            if not self._sent and self._sums:
                self._sent, self._sums = self._sums, {}
                self._sequence += 1
            return self._sent
