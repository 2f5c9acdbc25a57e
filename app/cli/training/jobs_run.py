"""The runs of `polyprefix train --jobs`: trained in one group, written as they end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.console import plain, print_error, print_warning, stderr, stdout
from app.cli.training.finished_jobs import FinishedJobs
from app.cli.training.jobs_file import PlannedJob, read_jobs
from app.cli.training.result import publish
from app.errors import InvalidRequest, PolyprefixError

if TYPE_CHECKING:
    from app.model.frozen import FrozenModel
    from app.training.progress import Outcome, Report
    from app.training.session import Session
    from app.training.trainer import Trainer


def train_jobs(ctx: typer.Context, path: Path, together: int) -> None:
    """Train the jobs of a file in one group and write their prefixes; exit 1 if one fails.

    Raises InvalidRequest, before the first step, if a line of the file is wrong.
    """
    from app.training.session import load_base

    jobs, resume = read_jobs(ctx, path), bool(ctx.params["resume"])
    first = jobs[0].plan.job
    model = load_base(first.model, first.recipe, first.device)
    record = FinishedJobs(path.with_name(path.name + ".finished"), fresh=not resume)
    waiting, steps = _checked(jobs, model, record, resume=resume)
    if len(waiting) < len(jobs):
        stderr().print(f"{len(jobs) - len(waiting)} of {len(jobs)} jobs have ended before")
    run = _JobsRun(model, record, together, resume=resume)
    run.train(waiting, steps)
    done = len(jobs) - len(run.failed)
    stdout().print(f"{done} of {len(jobs)} jobs are done")
    if run.failed:
        for place, reason in run.failed:
            print_error(f"{place}: {reason}")
        raise typer.Exit(1)
    record.remove()


def _checked(
    jobs: Sequence[PlannedJob], model: FrozenModel, record: FinishedJobs, *, resume: bool
) -> tuple[list[PlannedJob], int]:
    """The jobs that have not ended, and the steps that they have left.

    Each job is prepared once, so that all errors are known before the first step.
    """
    waiting, steps, errors = [], 0, []
    for job in jobs:
        try:
            session = _prepared(job, model, resume=resume)
        except (PolyprefixError, OSError) as error:
            errors.append(f"{job.place}: {error}")
            continue
        if record.has(job, session):
            session.trainer.discard_checkpoint()
        else:
            waiting.append(job)
            steps += session.trainer.total - session.trainer.step
    if errors:
        raise InvalidRequest("\n".join(errors))
    return waiting, steps


def _prepared(job: PlannedJob, model: FrozenModel, *, resume: bool) -> Session:
    from app.training.methods.names import PREFIX_METHODS
    from app.training.session import Session

    method = job.plan.job.recipe.method
    if method not in PREFIX_METHODS:
        raise InvalidRequest(
            f"method: {method} gives no prefix; --jobs trains {', '.join(PREFIX_METHODS)}"
        )
    session = Session(job.plan.job, model)
    if resume:
        session.trainer.resume()
    return session


class _JobsRun:
    """The jobs of a file on their way: up to `together` at the same time."""

    def __init__(
        self, model: FrozenModel, record: FinishedJobs, together: int, *, resume: bool
    ) -> None:
        from app.training.groups.job_group import JobGroup

        self._model, self._record, self._resume = model, record, resume
        self._together = together
        self._group = JobGroup(model)
        self._running: dict[Trainer, tuple[PlannedJob, Session]] = {}
        self.failed: list[tuple[str, str]] = []

    def train(self, jobs: Sequence[PlannedJob], steps: int) -> None:
        """Train all jobs, under a line that shows how far they are."""
        waiting, tokens, since = deque(jobs), 0, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=stderr()) as progress:
            task = progress.add_task("training", total=steps)
            while waiting or self._group.members:
                while waiting and len(self._group.members) < self._together:
                    self._start(waiting.popleft())
                losses = []
                for trainer, report in self._group.step():
                    self._after(trainer, report)
                    if not isinstance(report, PolyprefixError):
                        losses.append(report.loss)
                        tokens += report.tokens
                speed = tokens / max(time.monotonic() - since, 1e-9)
                mean = sum(losses) / max(1, len(losses))
                line = f"{len(losses)} jobs, mean loss {mean:.2f}, {speed:.0f} tokens/s"
                progress.update(task, advance=len(losses), description=line)

    def _start(self, job: PlannedJob) -> None:
        try:
            session = _prepared(job, self._model, resume=self._resume)
            session.trainer.initialise()
        except (PolyprefixError, OSError) as error:
            self.failed.append((job.place, str(error)))
            return
        self._running[session.trainer] = (job, session)
        if session.trainer.ended:
            self._finish(session.trainer)
        else:
            self._group.add(session.trainer)

    def _after(self, trainer: Trainer, report: Report | PolyprefixError) -> None:
        if isinstance(report, PolyprefixError):
            job, _ = self._running.pop(trainer)
            self.failed.append((job.place, str(report)))
            print_error(f"{job.place}: {report}; the other jobs go on")
        elif trainer.ended:
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        job, session = self._running.pop(trainer)
        plan = job.plan
        try:
            outcome = _outcome(session)
            _tell(plan.name, outcome)
            prefix = session.prefix(outcome.scores)
            publish(prefix, plan.name, store=plan.store, out=plan.out, alias=plan.alias)
            self._record.add(job, session)
            with suppress(OSError):
                trainer.discard_checkpoint()
        except (PolyprefixError, OSError) as error:
            self.failed.append((job.place, str(error)))
            print_error(f"{job.place}: {error}; the other jobs go on")


def _outcome(session: Session) -> Outcome:
    """Scores on the shared model if that is in single precision, as for a run alone."""
    import torch

    from app.evaluation.evaluator import EngineRunner, running_engine

    if not session.validation or session.model.dtype != torch.float32:
        return session.outcome()
    with running_engine(session.model) as engine:
        return session.outcome(EngineRunner(engine))


def _tell(name: str, outcome: Outcome) -> None:
    progress, base, tuned = outcome.progress, outcome.base, outcome.tuned
    line = (
        f"{name}: loss first {progress.first:.2f}, last {progress.last:.2f},"
        f" {progress.baseline} {progress.base:.2f}"
    )
    if base is not None and tuned is not None:
        line += f"; BLEU {tuned.bleu:.1f} instead of {base.bleu:.1f}"
    stdout().print(plain(line))
    if outcome.faults:
        print_warning(f"{name} has not learned its task: {'; '.join(outcome.faults)}")
