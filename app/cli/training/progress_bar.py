"""What a run shows while it trains: a progress line and TensorBoard logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.console import stderr
from app.errors import InvalidRequest

if TYPE_CHECKING:
    from app.training.progress import Report
    from app.training.trainer import Trainer

_LOSS_MEMORY = 0.95
"""Weight of the past in the displayed loss, which smooths single batches."""


class ScalarLog(Protocol):
    """Where numbers of a run are written, step by step: TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one number of one step."""


class TrainingSession(Protocol):
    """What a progress line shows: a session of training or of distillation."""

    @property
    def trainer(self) -> Trainer: ...

    def train(self, report: Callable[[Report], None]) -> None:
        """Train to the end."""


def train_visibly(session: TrainingSession, *, fresh: bool, log_dir: Path | None) -> None:
    """Run the session under a line with the loss, tokens per second and the time left."""
    notes, trainer = stderr(), session.trainer
    if not fresh and trainer.resume():
        notes.print(f"continues from step {trainer.step}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with _scalar_log(log_dir) as log, Progress(*columns, console=notes) as progress:
        task = progress.add_task("training", total=trainer.total, completed=trainer.step)
        shown: float | None = None
        tokens, since = 0, time.monotonic()

        def report(done: Report) -> None:
            nonlocal shown, tokens
            past = done.loss if shown is None else shown
            shown = _LOSS_MEMORY * past + (1 - _LOSS_MEMORY) * done.loss
            tokens += done.tokens
            speed = tokens / max(time.monotonic() - since, 1e-9)
            line = f"loss {shown:.2f}, {speed:.0f} tokens/s"
            progress.update(task, completed=done.step, description=line)
            if done.validation_loss is not None:
                score = done.validation_score
                more = "" if score is None else f", {trainer.recipe.metric} {score:.1f}"
                progress.print(
                    f"step {done.step}: validation loss {done.validation_loss:.3f}{more}"
                )
            if log is not None:
                _write(log, done, speed)

        session.train(report)
    if trainer.stopped_early:
        notes.print(f"stopped at step {trainer.step}: validation no longer improved")


def _write(log: ScalarLog, done: Report, speed: float) -> None:
    numbers = {
        "loss/training": done.loss,
        "loss/validation": done.validation_loss,
        "score/validation": done.validation_score,
        "learning_rate": done.lr,
        "tokens_per_second": speed,
    }
    for name, value in numbers.items():
        if value is not None:
            log.add_scalar(name, value, done.step)


@contextmanager
def _scalar_log(folder: Path | None) -> Iterator[ScalarLog | None]:
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InvalidRequest(
            "--log-dir needs TensorBoard; install it with `pip install polyprefix[train]`"
        ) from error
    with SummaryWriter(str(folder)) as writer:
        yield writer
