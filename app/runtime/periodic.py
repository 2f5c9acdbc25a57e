"""Work that is done again and again beside the requests, in a thread of its own.

A thread, because such work must not wait for one that requests keep busy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)


class PeriodicThread:
    """Calls `work` every `period_s` seconds from `start` to `stop`.

    With `on_demand`, `work` is only called after `wake`, and again after `period_s` if it fails.
    What it raises is logged once until it works again.
    """

    def __init__(
        self,
        what: str,
        period_s: float,
        work: Callable[[], object],
        *,
        delay_s: float = 0.0,
        on_demand: bool = False,
    ) -> None:
        """`what` names the work in logs; the first call comes `delay_s` after the start."""
        self._what, self._period_s, self._work = what, period_s, work
        self._delay_s, self._on_demand = delay_s, on_demand
        self._ended, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the call that runs, if one does."""
        self._ended.set()
        self._woken.set()
        self._thread.join()

    def wake(self) -> None:
        """Makes the next call at once."""
        self._woken.set()

    def _run(self) -> None:
        failing = False
        self._woken.wait(None if self._on_demand else self._delay_s)
        while not self._ended.is_set():
            begun = time.monotonic()
            self._woken.clear()
            try:
                self._work()
            except Exception as error:
                if not failing:
                    _log.warning("%s fails and is tried again: %s", self._what, error)
                failing = True
            else:
                if failing:
                    _log.info("%s works again", self._what)
                failing = False
            if self._on_demand and not failing:
                self._woken.wait()
            else:
                self._woken.wait(max(0.0, self._period_s - (time.monotonic() - begun)))
