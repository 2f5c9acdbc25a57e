"""What a training run says about itself: each step, its state, and what it has reached."""

from __future__ import annotations

from dataclasses import dataclass

_LEARNED = 0.98
"""A run has learned something if its last loss is below this share of the first loss."""


@dataclass(frozen=True)
class Report:
    """The state of a run after a step. The last two are set if the step measured them.

    `tokens` are those of the step's prompts and targets. `validation_score` is the recipe's metric
    if that is not the loss.
    """

    step: int
    total: int
    loss: float
    lr: float
    validation_loss: float | None = None
    validation_score: float | None = None
    tokens: int = 0


@dataclass
class RunState:
    """The state of a run, except its tensors. `stale` counts validations without a better one."""

    step: int = 0
    best_loss: float | None = None
    best_score: float | None = None
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    first_loss: float | None = None
    base_loss: float | None = None


@dataclass(frozen=True)
class TrainingProgress:
    """The result of a run: losses on the same `pairs` pairs.

    `base` is the loss of `baseline`, `first` that before the first step. `on_task`: the prefix was
    trained behind another.
    """

    base: float
    first: float
    last: float
    pairs: int
    on_task: bool = False

    @property
    def baseline(self) -> str:
        """What the result is compared with, in words."""
        return "task's prefix alone" if self.on_task else "base model alone"

    @property
    def fault(self) -> str | None:
        """Why the run has failed; None if it has not."""
        if not self.last < _LEARNED * self.first:
            return f"the loss did not fall ({self.first:.2f} at first, {self.last:.2f} at last)"
        if not self.last < self.base:
            return f"the {self.baseline} has a lower loss ({self.base:.2f}, not {self.last:.2f})"
        return None
