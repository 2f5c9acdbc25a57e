"""How a worker gives way to the requests of the server beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

NICENESS = 10
"""A thread of this priority gets a tenth of a core that another thread wants all the time."""
SHARE = 0.25
"""Part of its processors' time for which a worker computes while its server decodes rows."""
_LONGEST_WAIT_S = 2.0
_LOOK_S = 0.02


class DutyCycle:
    """Pauses after pieces of work while the server decodes rows.

    A piece that took t seconds of `processors` is followed by a pause, so that both together last
    t / `share`. It ends when the server has nothing to do. Where other processes have slowed the
    piece down, it has given way already, and the pause is shorter. `rows` tells how many rows the
    server decodes.
    """

    def __init__(
        self,
        rows: Callable[[], int] = lambda: 0,
        *,
        processors: int = 1,
        share: float = SHARE,
        work_clock: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
        longest_wait: float = _LONGEST_WAIT_S,
    ) -> None:
        """`work_clock` gives the seconds of all processors together, `clock` those that pass."""
        self._rows, self._share = rows, share * processors
        self._work_clock, self._clock = work_clock, clock
        self._longest_wait = longest_wait
        self._over = threading.Event()
        self._worked, self._since = work_clock(), clock()

    def pause(self) -> float:
        """Wait as long as the work since the last call demands; the seconds that it took."""
        began = self._clock()
        due = (self._work_clock() - self._worked) / self._share - (began - self._since)
        until = time.monotonic() + min(due, self._longest_wait)
        waited = time.monotonic()
        while self._rows() and (left := until - time.monotonic()) > 0:
            if self._over.wait(min(left, _LOOK_S)):
                break
        self._worked, self._since = self._work_clock(), self._clock()
        return time.monotonic() - waited

    def end(self) -> None:
        """No call waits any more: the process is about to end."""
        self._over.set()


def take_low_priority() -> None:
    """Let other processes of this machine compute first; threads that follow inherit it."""
    with suppress(OSError, AttributeError):
        os.nice(NICENESS)
