"""The loop of a worker: claim jobs, train them together, obey, publish, give back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from app.errors import PolyprefixError, Unavailable
from app.jobs.results import StoredResult
from app.jobs.types import ClaimedJob, ClaimLost, Order
from app.training.groups.job_group import JobGroup
from app.training.progress import Interrupted, Report
from app.training.trainer import Trainer
from app.worker.duty_cycle import DutyCycle
from app.worker.heartbeats import PERIOD_S, Heartbeats
from app.worker.preparation import Workplace, failure, is_trouble
from app.worker.resources import Resources
from app.worker.running_job import RunningJob

_log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Seconds between two looks into the queue."""
_FIRST_BACK_OFF_S = 2.0
"""Seconds without new jobs after one could not begin for a reason that is not the job's."""
_LONGEST_BACK_OFF_S = 30.0


class Worker:
    """Trains the jobs of one base model until `stop`, or until it has been idle for too long."""

    def __init__(
        self,
        resources: Resources,
        duty: DutyCycle | None = None,
        *,
        heartbeat_s: float = PERIOD_S,
        look_s: float = _LOOK_S,
        first_back_off_s: float = _FIRST_BACK_OFF_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config, claims = resources.config, resources.claims
        self._resources, self._clock = resources, clock
        self._duty = duty or DutyCycle()
        self._beats = Heartbeats(partial(claims.heartbeat, config.name), heartbeat_s)
        self._group = JobGroup(resources.model)
        self._running: list[RunningJob] = []
        self._in_step = False
        self._stopping = threading.Event()
        self._look_s, self._first_back_off_s = look_s, first_back_off_s
        self._look_at, self._last_job = float("-inf"), clock()
        self._troubles = 0
        self._ends: dict[str, tuple[ClaimedJob, Callable[[], None]]] = {}
        self._catalog_fails = False

    @property
    def running(self) -> int:
        """Jobs that it has now."""
        return len(self._running)

    def stop(self) -> None:
        """End soon: every job goes back to the queue with a checkpoint. For any thread."""
        self._stopping.set()
        self._duty.end()

    def run(self) -> None:
        """Work until `stop`; with `idle_exit`, also until there has been no job for so long."""
        idle_exit = self._resources.config.idle_exit
        self._beats.start()
        try:
            while not self._stopping.is_set():
                if self._ends and self._clock() >= self._look_at:
                    self._end_claims()
                self._take_jobs()
                if self._running:
                    self._last_job = self._clock()
                    self._step()
                elif idle_exit is not None and self._clock() - self._last_job > idle_exit:
                    return
                else:
                    self._stopping.wait(self._look_s / 2)
        finally:
            for run in list(self._running):
                self._give_back(run)
            self._end_claims()
            self._beats.stop()

    # Jobs come and go

    def _take_jobs(self) -> None:
        """Claim jobs for the free places, if the last look is long enough ago."""
        config, now = self._resources.config, self._clock()
        has_suspect = not all(run.is_proven for run in self._running)
        if has_suspect or self._ends or now < self._look_at:
            return
        self._look_at = now + self._look_s
        fingerprint = self._resources.model.spec.fingerprint
        try:
            if len(self._running) >= config.train_jobs:
                self._make_room(fingerprint, now)
            free = config.train_jobs - len(self._running)
            claimed = self._resources.claims.claim(config.name, fingerprint, free) if free else []
        except PolyprefixError as error:
            if not self._catalog_fails:
                _log.warning("no jobs can be claimed: %s", error)
            self._catalog_fails = True
            return
        self._catalog_fails = False
        if not claimed:
            return
        self._last_job = now
        for job in claimed:
            self._beats.add(job)
        begun = [self._begin(job) for job in claimed]
        if not all(begun):
            self._back_off()

    def _make_room(self, fingerprint: str, now: float) -> None:
        """Give the longest job of a tenant with too many back, if another tenant's job waits."""
        turn = self._resources.config.turn
        runs = {run.job: run for run in self._running if now - run.began >= turn}
        longest = sorted(runs, key=lambda job: runs[job].began)
        job = self._resources.claims.choose_yielding(fingerprint, longest) if runs else None
        if job is not None:
            self._give_back(runs[job], yields=True)

    def _back_off(self) -> None:
        """Claim nothing for a while, longer each time until a job succeeds."""
        wait = min(self._first_back_off_s * 2.0**self._troubles, _LONGEST_BACK_OFF_S)
        self._troubles += 1
        self._look_at = self._clock() + wait
        _log.warning("no jobs are claimed for %.0f s", wait)

    def _begin(self, job: ClaimedJob) -> bool:
        """Prepare a job and add it to the group, or fail it.

        False if it goes back to the queue because of the worker or what the worker needs.
        """
        _log.info("job %s of %s: attempt %d", job.id, job.tenant, job.attempt)
        between = self._between(job)
        try:
            between()
            run = RunningJob(job, self._resources, between)
        except Interrupted:
            self._give_back_unbegun(job)
        except ClaimLost as lost:
            _log.info("job %s: %s", job.id, lost)
            self._beats.remove(job)
        except Exception as error:
            self._fail(job, error)
            return not is_trouble(error)
        else:
            self._running.append(run)
            if not run.is_trained:
                self._group.add(run.trainer)
        return True

    def _give_back_unbegun(self, job: ClaimedJob) -> None:
        """Obey an order, or the end of the worker, that came while a job was prepared."""
        if self._beats.order(job) in (Order.GO_ON, Order.PAUSE):
            self._end_claim(job, partial(self._resources.claims.release, job))
        else:
            self._beats.remove(job)

    def _fail(self, job: ClaimedJob, error: Exception, files: Sequence[StoredResult] = ()) -> None:
        """End a job, which leaves `files`, with an error, or give it back if it is not its own."""
        claims = self._resources.claims
        place = Workplace(self._resources.folder, job)
        place.remove()
        code, message, param = failure(error, place)
        if isinstance(error, Unavailable):
            _log.warning("job %s is given back: %s", job.id, error)
            self._end_claim(job, partial(claims.release, job))
        elif is_trouble(error):
            _log.warning("job %s is given back: %s", job.id, error)
            self._end_claim(job, partial(claims.release_in_trouble, job, code, message))
        else:
            if isinstance(error, PolyprefixError):
                _log.info("job %s has failed: %s", job.id, error)
            else:
                _log.error("job %s has failed", job.id, exc_info=error)
            self._end_claim(job, partial(claims.fail, job, code, message, param, files))

    def _fail_running(self, run: RunningJob, error: Exception) -> None:
        """As `_fail`, of a job that has begun; the others go on."""
        self._leave(run, save=is_trouble(error))
        self._fail(run.job, error, run.kept)
        if is_trouble(error):
            self._back_off()

    def _give_back(self, run: RunningJob, *, yields: bool = False) -> None:
        self._leave(run, save=True)
        _log.info("job %s is given back after step %d", run.job.id, run.trainer.step)
        release = partial(self._resources.claims.release, run.job, yields=yields)
        self._end_claim(run.job, release)

    def _leave(self, run: RunningJob, *, save: bool) -> None:
        """Tell and save the state of a job, as far as that is possible, and drop it."""
        try:
            run.send(at_once=True)
            if save:
                run.save()
        except ClaimLost as lost:
            _log.info("job %s: %s", run.job.id, lost)
        except Exception as error:
            _log.warning("job %s is left without a checkpoint: %r", run.job.id, error)
        self._drop(run)

    def _end_claim(self, job: ClaimedJob, end: Callable[[], None]) -> None:
        """End the claim on a job; its lease is kept until the catalog has taken the end."""
        self._ends[job.id] = job, end
        self._end_claims()

    def _end_claims(self) -> None:
        for job, end in list(self._ends.values()):
            try:
                end()
            except ClaimLost as lost:
                _log.info("job %s: %s", job.id, lost)
            except PolyprefixError as error:
                _log.warning("job %s: its end here cannot be told yet: %s", job.id, error)
                self._look_at = max(self._look_at, self._clock() + self._look_s)
                continue
            del self._ends[job.id]
            self._beats.remove(job)

    def _forget(self, run: RunningJob) -> None:
        """The job is over, or another's."""
        self._beats.remove(run.job)
        self._drop(run)

    def _drop(self, run: RunningJob) -> None:
        self._leave_group(run)
        self._running.remove(run)
        run.close()

    def _leave_group(self, run: RunningJob) -> None:
        if run.trainer in self._group.members:
            self._group.remove(run.trainer)

    def _between(self, job: ClaimedJob) -> Callable[[], None]:
        """What is called now and then in long work for a job: pauses, and obeys orders.

        Outside of steps, orders for the other jobs are obeyed too.
        """

        def pause() -> None:
            self._duty.pause(self._has_orders)
            if self._stopping.is_set() or self._beats.order(job) is not Order.GO_ON:
                raise Interrupted
            if not self._in_step:
                for run in list(self._running):
                    if run.job is not job:
                        self._obey(run)

        return pause

    def _between_passes(self) -> None:
        """What is called within a step of all jobs: pauses, and ends the step with the worker."""
        self._duty.pause(self._has_orders)
        if self._stopping.is_set():
            raise Interrupted

    def _has_orders(self) -> bool:
        return any(self._beats.order(run.job) is not Order.GO_ON for run in self._running)

    # Work

    def _step(self) -> None:
        """One training step of all jobs; then each job is attended to."""
        by_trainer = {run.trainer: run for run in self._running}
        self._in_step = True
        outcomes = self._outcomes()
        self._in_step = False
        for trainer, done in outcomes:
            run = by_trainer[trainer]
            if isinstance(done, Exception):
                self._fail_running(run, done)
            else:
                run.note(done)
        for run in list(self._running):
            if run in self._running:  # the end of another job has obeyed orders for this one
                self._attend(run)
        self._duty.pause(self._has_orders)

    def _outcomes(self) -> list[tuple[Trainer, Report | Exception]]:
        """What a step has been for each run of the group.

        If the shared pass fails as a whole, for want of memory for example, each run takes its step
        alone, and those fail that cannot.
        """
        try:
            return [*self._group.step(self._between_passes)]
        except Exception as error:
            _log.warning("a shared step has failed and is taken job by job: %r", error)
        found: list[tuple[Trainer, Report | Exception]] = []
        for trainer in self._group.members:
            try:
                self._between_passes()
                found.append((trainer, trainer.take_step()))
            except Interrupted:
                break
            except Exception as error:
                found.append((trainer, error))
            if trainer.ended:
                self._group.remove(trainer)
        return found

    def _attend(self, run: RunningJob) -> None:
        """Obey the last order for a job, finish it, or tell and save its state."""
        if self._obey(run):
            return
        try:
            if run.is_trained:
                self._finish(run)
            else:
                run.send()
                run.save(if_due=True, jobs=len(self._running))
        except ClaimLost as lost:
            _log.info("job %s: %s", run.job.id, lost)
            self._forget(run)
        except Exception as error:
            self._fail_running(run, error)

    def _obey(self, run: RunningJob) -> bool:
        """Obey the last order for a job; whether it has left the worker."""
        order = self._beats.order(run.job)
        if order in (Order.CANCEL, Order.LOST):
            _log.info("job %s ends here: %s", run.job.id, order.value)
            self._forget(run)
        elif order is Order.PAUSE:
            self._give_back(run)
        return order is not Order.GO_ON

    def _finish(self, run: RunningJob) -> None:
        try:
            run.trainer.settle()
            run.save()
            run.finish(self._between(run.job))
        except Interrupted:
            return
        except Unavailable as error:
            _log.warning("job %s cannot be finished yet: %s", run.job.id, error)
            self._stopping.wait(_LOOK_S)
            return
        self._troubles = 0
        self._forget(run)
