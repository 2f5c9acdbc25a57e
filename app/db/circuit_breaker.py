"""Refuses calls to a server that does not answer, so that only the first callers wait for it.

A background thread probes the server and lets calls through again when it answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import Unavailable

_SLOW_S = 1.0
"""Quicker failures cost nobody time, and may concern one connection alone."""
_PAUSE_S = 0.5

Probe = Callable[[int], object]
"""Asks the server, and raises if it does not answer; it gets the attempt's number, from 1."""


class CircuitBreaker:
    """Opens after a failure that took long, and closes when a probe succeeds. Thread-safe."""

    def __init__(
        self,
        is_lost: Callable[[Exception], bool],
        probe: Probe,
        *,
        what: str = "the catalog",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_lost` says whether an error means that no answer came; `clock` gives seconds."""
        self._is_lost, self._probe, self._what, self._clock = is_lost, probe, what, clock
        self._lock = threading.Lock()
        self._is_open = False
        self._stopped = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A call of the server; during an outage it raises Unavailable at once."""
        if self._is_open:
            raise Unavailable(f"{self._what} does not answer")
        began = self._clock()
        try:
            yield
        except Exception as fault:
            if self._is_lost(fault) and self._clock() - began > _SLOW_S:
                self._open()
            raise

    def close(self) -> None:
        """Stops probing."""
        self._stopped.set()

    def _open(self) -> None:
        with self._lock:
            if self._is_open:
                return
            self._is_open = True
        threading.Thread(target=self._probe_until_answered, daemon=True).start()

    def _probe_until_answered(self) -> None:
        attempt = 0
        while not self._stopped.wait(_PAUSE_S):
            attempt += 1
            try:
                self._probe(attempt)
            except Exception as fault:
                if self._is_lost(fault):
                    continue
            self._is_open = False
            return
