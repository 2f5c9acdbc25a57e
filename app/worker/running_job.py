"""One job in the hands of a worker, from its files to the version that it makes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from app.db.errors import storage_faults
from app.errors import Conflict, InsufficientStorage, PolyprefixError
from app.jobs.results import StoredResult
from app.jobs.types import ClaimedJob, ClaimLost
from app.prefix.prefix import Prefix
from app.training.methods.files import write_trained
from app.training.progress import Outcome, Report
from app.training.publish import write_prefix
from app.training.session import Session
from app.training.trainer import Trainer
from app.worker.preparation import Workplace, is_trouble, prepare
from app.worker.publication import PublishedResult, publish_result
from app.worker.reporting import Reporter, write_metrics
from app.worker.resources import Resources
from app.worker.scoring import ScoringRunner

_log = logging.getLogger(__name__)

_SAVING_SHARE = 0.05
"""Part of a worker's time that its jobs' checkpoints may take."""


class RunningJob:
    """A claimed job with its session. Any call may raise ClaimLost: then forget the job.

    `kept` is what the job leaves if it fails: a prefix that no version could be made of.
    """

    def __init__(
        self,
        job: ClaimedJob,
        resources: Resources,
        between: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Fetch and check everything. Raises as `prepare` does; then nothing is left behind.

        `between` is called now and then if that takes long.
        """
        self.job = job
        self._resources, self._clock = resources, clock
        self._place = Workplace(resources.folder, job)
        self._outcome: Outcome | None = None
        self._published: PublishedResult | None = None
        self.kept: list[StoredResult] = []
        self.began = self._sent = self._saved = clock()
        self._is_proven = not job.losses
        self._saving_s = 0.0
        try:
            self._place.make()
            prepared = prepare(job, self._place, resources, between)
            prepared.session.trainer.initialise()
        except BaseException as error:
            if isinstance(error, PolyprefixError):
                self._place.translate(error)
            self._place.remove()
            raise
        self._session = prepared.session
        self.trainer: Trainer = self._session.trainer
        # a trainer that has steps has them from the job's checkpoint
        self._saved_step = self.trainer.step or -1
        tokens = self.trainer.tokens + self._session.prepared_tokens
        self._reporter = Reporter(self.trainer.recipe.lr or 0.0, tokens)
        warnings = [] if prepared.warning is None else [prepared.warning]
        for sentence in [*warnings, *self._session.advice()]:
            self._reporter.say(sentence, level="warn")

    @property
    def is_trained(self) -> bool:
        """Whether no step is left."""
        return self.trainer.ended

    @property
    def is_proven(self) -> bool:
        """Whether the job has never lost a worker, or has run here until a checkpoint was due."""
        return self._is_proven

    def note(self, done: Report) -> None:
        """A step is done."""
        self._reporter.step(done)

    def send(self, *, at_once: bool = False) -> None:
        """Tell the catalog what has happened since; what it does not take is told later."""
        now = self._clock()
        if not at_once and now - self._sent < self._resources.config.tell_every:
            return
        self._sent = now
        events = self._reporter.take()
        claims, trainer = self._resources.claims, self.trainer
        try:
            if events:
                claims.add_events(self.job, events)
                events = []
            claims.report(self.job, self._reporter.progress(trainer.step, trainer.total))
        except ClaimLost:
            raise
        except PolyprefixError as error:
            self._reporter.put_back(events)
            _log.warning("job %s: its progress cannot be told yet: %s", self.job.id, error)

    def save(self, *, if_due: bool = False, jobs: int = 1) -> None:
        """Store a checkpoint, from which any worker can go on.

        Without effect if this step is saved already; with `if_due`, also if the last one is not old
        yet, for a worker that has so many `jobs`. If a disk is full, the job's owner is told.
        """
        slow = jobs * self._saving_s / _SAVING_SHARE
        wait = max(self._resources.config.checkpoint_every, slow)
        began = self._clock()
        if self._saved_step == self.trainer.step or (if_due and began - self._saved < wait):
            return
        try:
            with storage_faults("writing the checkpoint"):
                self.trainer.save()
            self._resources.claims.save_checkpoint(
                self.job, self._place.checkpoint, self.trainer.step, self._reporter.metrics
            )
            self._saving_s = self._clock() - began
            self._saved_step = self.trainer.step
        except InsufficientStorage as error:
            text = f"No checkpoint could be saved: {self._place.told(error.message)}"
            self._reporter.say(text, level="warn")
        except (PolyprefixError, OSError) as error:
            if not is_trouble(error):
                raise
            _log.warning("job %s: no checkpoint could be saved: %s", self.job.id, error)
        finally:
            self._saved, self._is_proven = self._clock(), True

    def finish(self, between: Callable[[], None]) -> None:
        """Score what was trained, publish it if it is a prefix, and end the job.

        `between` is called now and then. May be called again if the catalog or the store was busy.
        """
        resources = self._resources
        runner = ScoringRunner(resources.engine, between)
        if self._outcome is None:
            self._reporter.say("The training has ended; its result is scored and stored now.")
            self.send(at_once=True)
            self._outcome = self._session.outcome(runner)
            self._tell_faults(self._outcome)
        outcome = self._outcome
        if self._session.gives_prefix and self._published is None:
            prefix = self._session.prefix(outcome.scores)
            between()
            on = self._session.on if isinstance(self._session, Session) else None
            try:
                self._published = publish_result(self.job, prefix, resources, runner, on)
            except Conflict:
                self.kept = self._keep(prefix)
                raise
            self._tell_refusal(self._published)
        self.send(at_once=True)
        made = None if self._published is None else self._published.name
        files: list[StoredResult] = []
        try:
            self._store_files(outcome, files)
            resources.claims.succeed(self.job, made, self._result(outcome), files)
        except Exception:
            resources.claims.discard(files)
            raise
        _log.info("job %s has made %s", self.job.id, made or self.job.spec.method)

    def close(self) -> None:
        """Remove the job's files from this machine."""
        self._place.remove()

    def _keep(self, prefix: Prefix) -> list[StoredResult]:
        """A prefix that the registry has refused, stored for the end of the job."""
        path = self._place.folder / f"{self.job.spec.suffix}.safetensors"
        try:
            with storage_faults("writing the prefix"):
                write_prefix(prefix, path)
            return [self._resources.claims.store_result(self.job, path)]
        except InsufficientStorage as error:
            text = f"The prefix could not be kept as a file: {self._place.told(error.message)}"
            self._reporter.say(text, level="warn")
            return []

    def _store_files(self, outcome: Outcome, files: list[StoredResult]) -> None:
        """Store what the job leaves and add it to `files`: its metrics, and what is no prefix."""
        claims, session = self._resources.claims, self._session
        if isinstance(session, Session) and not session.gives_prefix:
            path = self._place.folder / f"{self.job.spec.suffix}.safetensors"
            write_trained(session.trained(outcome.scores), path)
            files.append(claims.store_result(self.job, path))
        try:
            with storage_faults("writing the metrics"):
                write_metrics(claims.metrics(self.job), self._place.metrics)
            files.append(claims.store_result(self.job, self._place.metrics))
        except InsufficientStorage as error:
            text = f"The job leaves no file of its metrics: {self._place.told(error.message)}"
            self._reporter.say(text, level="warn")
            self.send(at_once=True)

    def _tell_faults(self, outcome: Outcome) -> None:
        if outcome.faults:
            self._reporter.say(
                f"The job has not learned its task: {'; '.join(outcome.faults)}. Look at the"
                f" data, or try another learning rate than {self.trainer.recipe.lr:g} or more than"
                f" {self.trainer.total} steps.",
                level="warn",
            )

    def _tell_refusal(self, published: PublishedResult) -> None:
        if published.refusal is not None:
            self._reporter.say(
                f"The alias {self.job.spec.alias} has not moved: {published.refusal}", level="warn"
            )

    def _result(self, outcome: Outcome) -> dict[str, Any]:
        """What the job's owner reads about its end, as JSON values."""
        trainer = self.trainer
        result: dict[str, Any] = {
            **outcome.scores,
            "learned": not outcome.faults,
            "steps": trainer.step,
            "stopped_early": trainer.stopped_early,
            "trained_tokens": self._reporter.trained_tokens,
            "recipe": trainer.recipe.as_dict(),
            "seconds": round(self._clock() - self.began, 1),
        }
        if self.job.spec.alias is not None and self._published is not None:
            moved = self._published.refusal is None
            result["alias"] = {"name": self.job.spec.alias, "moved": moved}
        return result
