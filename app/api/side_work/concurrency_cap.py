"""How much of a kind each tenant has open at a time, bounded before any work is done for it.

For what takes room or work that no limit counts yet: uploads that are not complete, evaluations
that are read and encoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import TenantQueueFull

MAX_OPEN = 16
"""Of one kind, by one tenant."""


class ConcurrencyCap:
    """Counts of one event loop; `open` has those tenants that have something open."""

    def __init__(self, what: str) -> None:
        """`what` names the kind, as in "uploads"."""
        self._what = what
        self.open = Counter[str]()

    @contextmanager
    def slot(self, tenant: str) -> Iterator[None]:
        """One more of the tenant for the length of the block; TenantQueueFull at `MAX_OPEN`."""
        if self.open[tenant] >= MAX_OPEN:
            raise TenantQueueFull(
                f"{MAX_OPEN} {self._what} of this tenant are open; try again later"
            )
        self.open[tenant] += 1
        try:
            yield
        finally:
            self.open[tenant] -= 1
            if not self.open[tenant]:
                del self.open[tenant]
