"""What the owner of a job hears while it is trained: its steps, its speed, and warnings."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.jobs.types import JobEvent, JobProgress
from app.training.progress import Report

_SHOWN_STEPS = 100
"""About how many steps of a run are told."""
_SECONDS = 2.0
"""Between two events at least, unless a step was validated."""
_WATCHED = 0.3
"""Part of a run after which its loss must have fallen."""
_FALLEN = 0.98
_COLUMNS = (
    *("step", "train_loss", "valid_loss", "valid_score", "learning_rate"),
    "tokens_per_second",
)
"""Of the file of metrics."""


class Reporter:
    """Turns the steps of one run into events; `take` returns those since the last call."""

    def __init__(
        self,
        lr: float,
        trained_tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lr` is the run's peak rate; `trained_tokens` are those of earlier attempts."""
        self._lr, self._clock = lr, clock
        self._events: list[JobEvent] = []
        self.trained_tokens = trained_tokens
        self.metrics: dict[str, Any] = {}
        self._began = self._told = clock()
        self._new_tokens, self._new_steps = 0, 0
        self._first: list[float] = []
        self._recent: list[float] = []
        self._warned = False
        self.last: Report | None = None

    def say(self, message: str, level: str = "info", **data: Any) -> None:
        """Add a message."""
        self._events.append(JobEvent(message=message, level=level, data=data or None))

    def step(self, done: Report) -> None:
        """Note a step."""
        self.last = done
        self.trained_tokens += done.tokens
        self._new_tokens += done.tokens
        self._new_steps += 1
        self._watch(done)
        now = self._clock()
        validated = done.validation_loss is not None
        often = done.step % max(1, done.total // _SHOWN_STEPS) == 0
        if not (validated or done.step == done.total or (often and now - self._told >= _SECONDS)):
            return
        self._told = now
        self.metrics = self._metrics(done)
        self._events.append(
            JobEvent(message=_sentence(done), type="metrics", data=dict(self.metrics))
        )

    def take(self) -> list[JobEvent]:
        """The events since the last call."""
        taken, self._events = self._events, []
        return taken

    def put_back(self, events: list[JobEvent]) -> None:
        """Events that could not be told yet."""
        self._events = events + self._events

    @property
    def seconds_left(self) -> float | None:
        """How long the remaining steps take at the speed of this attempt; None before the first."""
        if self.last is None or not self._new_steps:
            return None
        per_step = (self._clock() - self._began) / self._new_steps
        return per_step * (self.last.total - self.last.step)

    def progress(self, step: int, total: int) -> JobProgress:
        """How far the job is."""
        return JobProgress(
            step=step,
            total_steps=total,
            trained_tokens=self.trained_tokens,
            seconds_left=self.seconds_left,
        )

    def _metrics(self, done: Report) -> dict[str, Any]:
        seconds = max(self._clock() - self._began, 1e-9)
        left = self.seconds_left
        found = {
            "step": done.step,
            "total_steps": done.total,
            "train_loss": round(done.loss, 5),
            "learning_rate": done.lr,
            "valid_loss": None if done.validation_loss is None else round(done.validation_loss, 5),
            "valid_score": done.validation_score,
            "tokens_per_second": round(self._new_tokens / seconds, 1),
            "seconds_left": None if left is None else round(left, 1),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _watch(self, done: Report) -> None:
        """Warn once if the mean loss of the last steps is not below that of the first ones."""
        window = max(3, done.total // 20)
        if len(self._first) < window:
            self._first.append(done.loss)
            return
        self._recent = [*self._recent[-(window - 1) :], done.loss]
        if self._warned or len(self._recent) < window or done.step < _WATCHED * done.total:
            return
        first, recent = _mean(self._first), _mean(self._recent)
        if recent >= _FALLEN * first:
            self.say(
                f"After {done.step} of {done.total} steps the loss has not fallen ({first:.2f} at"
                f" first, {recent:.2f} now). Look at the data, or try another learning rate than"
                f" {self._lr:g}.",
                level="warn",
            )
        self._warned = True


def write_metrics(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a CSV file with a row for each step that was told. Raises OSError if that fails."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(metrics)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _sentence(done: Report) -> str:
    text = f"Step {done.step}/{done.total}: training loss {done.loss:.3f}"
    if done.validation_loss is not None:
        text += f", validation loss {done.validation_loss:.3f}"
    return text
