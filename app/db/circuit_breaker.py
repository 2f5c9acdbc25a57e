"""Remembers that a server does not answer, so that not everybody waits to find out.

After somebody has waited in vain, others are refused at once until it answers again. That is found
out by one of them now and then, or by a probe that runs beside the calls. Knows nothing about the
server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import Unavailable

_SLOW_S = 1.0
_PAUSE_S = 0.5
_TRY_S = 15.0
"""How long others wait for the end of a try: longer than any is known to last."""

Probe = Callable[[int], object]
"""Asks the server; raises if it does not answer. It is told the number of the attempt, from 1."""


class CircuitBreaker:
    """Thread-safe. Begins with a fault that took long: one that is told at once costs nobody time
    and may concern one connection alone."""

    def __init__(
        self,
        is_lost: Callable[[Exception], bool],
        *,
        what: str = "the catalog",
        probe: Probe | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_lost` says whether an error means that no answer came; `clock` gives seconds.

        With a `probe` no call is spent on finding out whether `what` answers again.
        """
        self._is_lost, self._what, self._probe, self._clock = is_lost, what, probe, clock
        self._lock = threading.Lock()
        self._next_try: float | None = None
        self._closed = threading.Event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A call of the server; Unavailable instead of it while there is an outage."""
        began = self._enter()
        try:
            yield
        except Exception as fault:
            if self._is_lost(fault):
                self._fail(began)
            raise
        if self._next_try is not None and self._probe is None:
            self._end()

    def close(self) -> None:
        """Ends the probe, if one runs."""
        self._closed.set()

    def _enter(self) -> float:
        now = self._clock()
        if self._next_try is not None:
            with self._lock:
                if self._next_try is not None:
                    if self._probe is not None or now < self._next_try:
                        raise Unavailable(f"{self._what} does not answer")
                    self._next_try = now + _TRY_S
        return now

    def _fail(self, began: float) -> None:
        now = self._clock()
        with self._lock:
            is_new = self._next_try is None
            if is_new and now - began <= _SLOW_S:
                return
            self._next_try = now + _PAUSE_S
        if is_new and self._probe is not None:
            threading.Thread(target=self._try_again, args=(self._probe,), daemon=True).start()

    def _try_again(self, probe: Probe) -> None:
        attempt = 0
        while not self._closed.wait(_PAUSE_S):
            attempt += 1
            try:
                probe(attempt)
            except Exception as fault:
                if self._is_lost(fault):
                    continue
            self._end()
            return

    def _end(self) -> None:
        with self._lock:
            self._next_try = None
