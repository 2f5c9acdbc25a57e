"""Remembers that a database does not answer, so that not everybody waits to find out.

After somebody has waited in vain, others are refused at once; now and then one of them tries, and
the first success ends it. Knows nothing about the database.
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


class Outage:
    """Thread-safe. Begins with a fault that took long: one that is told at once costs nobody time
    and may concern one connection alone."""

    def __init__(
        self, is_lost: Callable[[Exception], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`is_lost` says whether an error means that no answer came; `clock` gives seconds."""
        self._is_lost, self._clock = is_lost, clock
        self._lock = threading.Lock()
        self._next_try: float | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A call of the database; Unavailable instead of it while there is an outage."""
        began = self._enter()
        try:
            yield
        except Exception as fault:
            if self._is_lost(fault):
                self._fail(began)
            raise
        if self._next_try is not None:
            self._end()

    def _enter(self) -> float:
        now = self._clock()
        if self._next_try is not None:
            with self._lock:
                if self._next_try is not None:
                    if now < self._next_try:
                        raise Unavailable("the catalog does not answer")
                    self._next_try = now + _TRY_S
        return now

    def _fail(self, began: float) -> None:
        now = self._clock()
        with self._lock:
            if self._next_try is not None or now - began > _SLOW_S:
                self._next_try = now + _PAUSE_S

    def _end(self) -> None:
        with self._lock:
            self._next_try = None
