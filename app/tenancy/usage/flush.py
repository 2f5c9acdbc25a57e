"""What is kept of tenants' doings, usage and audit, and how it gets from memory to the catalog.

Synchronous: whoever holds the books calls `write` every few seconds and `close` at the end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from app.db.database import Database
from app.errors import PolyprefixError
from app.tenancy.audit.log import AuditLog
from app.tenancy.usage.recorder import UsageLedger

_log = logging.getLogger(__name__)

WRITE_S = 2.0
"""Seconds between two calls of `write`; a crash loses what came since the last one."""
_PRUNE_S = 3600.0


class CatalogFlush:
    """The usage and the audit log of one process."""

    def __init__(
        self,
        catalog: Database,
        replica: str,
        *,
        usage_days: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`replica` names the audit chain; hours of usage are kept for `usage_days`."""
        self.catalog = catalog
        self.usage = UsageLedger(catalog)
        self.audit = AuditLog(catalog, replica)
        self._keep_s = usage_days * 86_400.0
        self._clock = clock
        self._pruned_at: float | None = None

    def write(self) -> None:
        """Write what is new, and now and then forget what is old; raises what the catalog raises.

        What could not be written is kept for the next time.
        """
        try:
            self.usage.flush()
        finally:
            self.audit.flush()
        now = self._clock()
        if self._pruned_at is None or now - self._pruned_at >= _PRUNE_S:
            self.usage.prune(self._keep_s)
            self._pruned_at = now

    def close(self) -> None:
        """Write all that is left, as far as the catalog takes it."""
        for part, write in (
            ("usage", self.usage.flush),
            ("counts of refusals", lambda: self.audit.flush(everything=True)),
        ):
            try:
                write()
            except PolyprefixError as error:
                _log.error("the last %s could not be written: %s", part, error)
        if self.usage.lost:
            _log.error("%d requests are not in the usage", self.usage.lost)
