"""How a worker gives way to the requests of the server beside it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

LOWEST_NICENESS = 19
SHARE = 0.25
"""Part of the time in which a worker computes while its server decodes rows."""
_LONGEST_WAIT_S = 2.0
_LOOK_S = 0.02


class DutyCycle:
    """Pauses after pieces of work while the server decodes rows.

    A piece that took t seconds is followed by a pause of t · (1 / `share` - 1), which ends when the
    server has nothing to do. `rows` tells how many rows it decodes.
    """

    def __init__(
        self,
        rows: Callable[[], int] = lambda: 0,
        share: float = SHARE,
        clock: Callable[[], float] = time.process_time,
        longest_wait: float = _LONGEST_WAIT_S,
    ) -> None:
        """`clock` measures the work in seconds: by default, the processor time of this process."""
        self._rows, self._share, self._clock = rows, share, clock
        self._longest_wait = longest_wait
        self._over = threading.Event()
        self._since = clock()

    def pause(self) -> float:
        """Wait as long as the work since the last call demands; the seconds that it took."""
        worked = self._clock() - self._since
        began = time.monotonic()
        due = min(worked * (1 / self._share - 1), self._longest_wait)
        while self._rows() and (left := due - (time.monotonic() - began)) > 0:
            if self._over.wait(min(left, _LOOK_S)):
                break
        self._since = self._clock()
        return time.monotonic() - began

    def end(self) -> None:
        """No call waits any more: the process is about to end."""
        self._over.set()


def take_lowest_priority() -> None:
    """Let every other process of this machine compute first; threads that follow inherit it."""
    with suppress(OSError, AttributeError):
        os.nice(LOWEST_NICENESS)
