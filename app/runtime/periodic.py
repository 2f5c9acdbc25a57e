"""Work that is done again and again beside the requests, in a thread of its own.

A thread, because such work must not wait for one that requests keep busy. Knows nothing about what
is done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class PeriodicThread:
    """Calls `work` every `period_s` seconds from `start` to `stop`.

    What it raises is logged once until it works again.
    """

    def __init__(
        self, what: str, period_s: float, work: Callable[[], object], *, delay_s: float = 0.0
    ) -> None:
        """`what` names the work in logs; the first call comes `delay_s` after the start."""
        self._what = what
        self._period_s, self._delay_s = period_s, delay_s
        self._work = work
        self._ended, self._woken = threading.Event(), threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the call that runs, if one does."""
        self._ended.set()
        self._woken.set()
        self._thread.join()

    def wake(self) -> None:
        """Let the next call not wait for its time."""
        self._woken.set()

    def _run(self) -> None:
        self._woken.wait(self._delay_s)
        while not self._ended.is_set():
            begun = time.monotonic()
            self._woken.clear()
            self._once()
            self._woken.wait(max(0.0, self._period_s - (time.monotonic() - begun)))

    def _once(self) -> None:
        try:
            self._work()
        except Exception as error:
            if not self._failing:
                _log.warning("%s fails and is tried again: %s", self._what, error)
            self._failing = True
        else:
            if self._failing:
                _log.info("%s works again", self._what)
            self._failing = False
