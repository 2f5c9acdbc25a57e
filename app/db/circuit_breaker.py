"""Refuses calls to a server that does not answer, so that only the first callers wait for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import Unavailable

_log = logging.getLogger(__name__)

_SLOW_S = 1.0
"""Quicker failures cost nobody time, and may concern one connection alone."""
_PAUSE_S = 0.5
_MAX_REASON = 200

Probe = Callable[[int], object]
"""Asks the server, and raises if it does not answer; it gets the attempt's number, from 1."""


class CircuitBreaker:
    """Open while the server `what` is known to fail: then nobody asks it. Thread-safe.

    The log has a line when it opens, with what holds `meanwhile`, and one when it closes.
    """

    def __init__(
        self,
        what: str,
        *,
        meanwhile: str = "calls are refused until it answers",
        is_open: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds. A breaker that starts open is not in the log until it fails."""
        self._what, self._meanwhile, self._clock = what, meanwhile, clock
        self._lock = threading.Lock()
        self._logged_at: float | None = None
        self.is_open, self.faults = is_open, 0

    def count(self) -> None:
        """Counts a fault that by itself does not show that the server fails."""
        with self._lock:
            self.faults += 1

    def open(self, reason: str) -> bool:
        """The server fails; whether that is new."""
        with self._lock:
            self.faults += 1
            was_open, self.is_open = self.is_open, True
            if self._logged_at is None:
                self._logged_at = self._clock()
                reason = reason[:_MAX_REASON]
                _log.warning("%s fails (%s); %s", self._what, reason, self._meanwhile)
        return not was_open

    def close(self) -> None:
        """The server works."""
        with self._lock:
            if self.is_open and self._logged_at is not None:
                seconds = self._clock() - self._logged_at
                _log.info("%s works again after %.1f s", self._what, seconds)
            self.is_open, self._logged_at = False, None


class ProbingBreaker(CircuitBreaker):
    """Opens after a call that took long to fail, and closes when a probe, made by a thread in the
    background, succeeds."""

    def __init__(
        self,
        what: str,
        is_lost: Callable[[Exception], bool],
        probe: Probe,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_lost` says whether an error means that no answer came."""
        super().__init__(what, clock=clock)
        self._is_lost, self._probe = is_lost, probe
        self._stopped = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A call of the server; Unavailable at once while it is known to fail."""
        if self.is_open:
            raise Unavailable(f"{self._what} does not answer")
        began = self._clock()
        try:
            yield
        except Exception as fault:
            took_long = self._clock() - began > _SLOW_S
            # of the error its name alone: a text may repeat a statement's values
            if took_long and self._is_lost(fault) and self.open(type(fault).__name__):
                threading.Thread(target=self._probe_until_answered, daemon=True).start()
            raise

    def stop(self) -> None:
        self._stopped.set()

    def _probe_until_answered(self) -> None:
        attempt = 0
        while not self._stopped.wait(_PAUSE_S):
            attempt += 1
            try:
                self._probe(attempt)
            except Exception as fault:
                if self._is_lost(fault):
                    continue
            self.close()
            return
