"""How a worker gives way to the requests of the server beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path

NICENESS = 10
"""A thread of this priority gets a tenth of a core that another thread wants all the time."""
SHARE = 0.25
"""Part of its processors' time for which a worker computes while its server decodes rows."""
_LOOK_S = 0.02
_IDLE_S = 0.1
"""A server without rows for so long is idle. Between two requests it is for a shorter time."""
_OOM_SCORE = Path("/proc/self/oom_score_adj")


class DutyCycle:
    """Pauses after pieces of work while the server decodes rows.

    A piece that took t seconds of `processors` is followed by a pause, so that both together last
    t / `share`, however long it was. It ends when the server is idle. Where other
    processes have slowed the piece down, it has given way already, and the pause is shorter. `rows`
    tells how many rows the server decodes.
    """

    def __init__(
        self,
        rows: Callable[[], int] = lambda: 0,
        *,
        processors: int = 1,
        share: float = SHARE,
        work_clock: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`work_clock` gives the seconds of all processors together, `clock` those that pass."""
        self._rows, self._share = rows, share * processors
        self._work_clock, self._clock = work_clock, clock
        self._over = threading.Event()
        self._worked, self._since = work_clock(), clock()

    def pause(self, is_wanted: Callable[[], bool] = lambda: False) -> float:
        """Wait as long as the work since the last call demands; the seconds that it took.

        The pause ends as soon as the worker `is_wanted`: by an order for a job, for example.
        """
        began = self._clock()
        due = (self._work_clock() - self._worked) / self._share - (began - self._since)
        waited = time.monotonic()
        until = waited + due
        busy = waited if self._rows() else -inf
        while not is_wanted() and (now := time.monotonic()) < min(until, busy + _IDLE_S):
            if self._over.wait(min(until - now, _LOOK_S)):
                break
            busy = time.monotonic() if self._rows() else busy
        self._worked, self._since = self._work_clock(), self._clock()
        return time.monotonic() - waited

    def end(self) -> None:
        """No call waits any more: the process is about to end."""
        self._over.set()


def take_low_priority() -> None:
    """Let other processes of this machine compute first; threads that follow inherit it.

    Where memory lacks, the kernel ends this process before others.
    """
    with suppress(OSError, AttributeError):
        os.nice(NICENESS)
    with suppress(OSError):
        _OOM_SCORE.write_text("1000")
