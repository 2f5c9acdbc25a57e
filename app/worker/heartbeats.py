"""Keeps the leases of a worker's jobs alive, however long a training step takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from app.errors import PolyprefixError
from app.jobs.types import ClaimedJob, Order

_log = logging.getLogger(__name__)

PERIOD_S = 1.0


class Heartbeats:
    """A thread that renews leases every `period_s` seconds and notes what is to be done.

    `beat` is `JobClaims.heartbeat` of this worker. While the catalog cannot be reached, the last
    orders hold.
    """

    def __init__(
        self,
        beat: Callable[[Sequence[ClaimedJob]], Mapping[str, Order]],
        period_s: float = PERIOD_S,
    ) -> None:
        self._beat, self._period_s = beat, period_s
        self._jobs: dict[str, ClaimedJob] = {}
        self._orders: dict[str, Order] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self._failing = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the beat that is under way."""
        self._ended.set()
        self._thread.join()

    def add(self, job: ClaimedJob) -> None:
        """Keep this job's lease from now on."""
        with self._lock:
            self._jobs[job.id] = job
            self._orders[job.id] = Order.GO_ON

    def remove(self, job: ClaimedJob) -> None:
        """The job is over, or another's."""
        with self._lock:
            self._jobs.pop(job.id, None)
            self._orders.pop(job.id, None)

    def order(self, job: ClaimedJob) -> Order:
        """What is to be done with the job, as the last beat said."""
        return self._orders.get(job.id, Order.LOST)

    def beat(self) -> None:
        """Renew all leases now. Raises what the catalog raises."""
        with self._lock:
            jobs = list(self._jobs.values())
        if not jobs:
            return
        orders = self._beat(jobs)
        with self._lock:
            for job in jobs:
                if job.id in self._jobs:
                    self._orders[job.id] = orders.get(job.id, Order.LOST)

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            try:
                self.beat()
            except PolyprefixError as error:
                if not self._failing:
                    _log.warning("leases of jobs cannot be renewed: %s", error)
                self._failing = True
            else:
                self._failing = False
