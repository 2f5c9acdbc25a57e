"""How many uploads each tenant has open: what is not complete takes room on disk that no quota
counts yet.

Knows nothing about files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import TenantQueueFull

MAX_OPEN = 16
"""Uploads of one tenant at a time."""


class OpenUploads:
    """Counts of one event loop; who has none open is not remembered."""

    def __init__(self) -> None:
        self._open = Counter[str]()

    @contextmanager
    def one_of(self, tenant: str) -> Iterator[None]:
        """An upload of the tenant for the length of the block; TenantQueueFull at `MAX_OPEN`."""
        if self._open[tenant] >= MAX_OPEN:
            raise TenantQueueFull(f"{MAX_OPEN} uploads of this tenant are open; try again later")
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]
