"""How much of a kind each tenant has open at a time, bounded before any work is done for it.

For what takes room or work that no limit counts yet: uploads that are not complete, evaluations
that are read and encoded. Knows nothing about either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import TenantQueueFull

MAX_OPEN = 16
"""Of one kind, by one tenant."""


class ConcurrencyCap:
    """Counts of one event loop; who has none open is not remembered."""

    def __init__(self, what: str) -> None:
        """`what` names the kind, as in "uploads"."""
        self._what = what
        self._open = Counter[str]()

    @contextmanager
    def slot(self, tenant: str) -> Iterator[None]:
        """One more of the tenant for the length of the block; TenantQueueFull at `MAX_OPEN`."""
        if self._open[tenant] >= MAX_OPEN:
            raise TenantQueueFull(
                f"{MAX_OPEN} {self._what} of this tenant are open; try again later"
            )
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]
