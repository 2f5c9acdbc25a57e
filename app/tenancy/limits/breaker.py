"""Remembers whether a helper that may fail can be asked, counts its faults, logs the changes.

Knows nothing about what the helper does, and asks nobody: whoever asks tells it what happened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Breaker:
    """Open from when the helper was seen to fail, until it was seen to work.

    It starts open. `meanwhile` says in the log what holds while it is open.
    """

    def __init__(
        self, helper: str, *, meanwhile: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._helper, self._meanwhile, self._clock = helper, meanwhile, clock
        self._since: float | None = clock()
        self._faults = 0
        self._is_logged = False

    @property
    def is_open(self) -> bool:
        """Whether the helper is not to be asked."""
        return self._since is not None

    @property
    def faults(self) -> int:
        """Faults so far, the failed attempts while it was open among them."""
        return self._faults

    def count(self) -> None:
        """A fault that by itself does not show that the helper fails."""
        self._faults += 1

    def trip(self, reason: str) -> None:
        """The helper has failed; it is logged once until it works again."""
        self._faults += 1
        if self._since is None:
            self._since = self._clock()
        if not self._is_logged:
            self._is_logged = True
            _log.warning("%s fails (%s); %s", self._helper, reason[:200], self._meanwhile)

    def mend(self) -> None:
        """The helper has been seen to work."""
        if self._since is None:
            return
        if self._is_logged:
            _log.info("%s works again after %.1f s", self._helper, self._clock() - self._since)
        self._since, self._is_logged = None, False
