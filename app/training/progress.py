"""What a training run says about itself: each step, its state, and what it has reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from app.evaluation.evaluator import Evaluation

_LEARNED = 0.98
"""A run has learned something if its last loss is below this share of the first loss."""


class Interrupted(Exception):
    """What a run does ends here, because whoever trains it has something else to do."""


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
    """The state of a run, except its tensors.

    `stale` counts validations without a better one, `tokens` those of all steps so far.
    `validation_due`: that of the last step was interrupted.
    """

    step: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_score: float | None = None
    best_step: int = 0
    stale: int = 0
    stopped: bool = False
    first_loss: float | None = None
    base_loss: float | None = None
    validation_due: bool = False

    def takes_best(self, loss: float, score: float, patience: int) -> bool:
        """Note a validation; whether the state is the best so far.

        Of states with equal scores, that with the lower loss is better. The run ends after
        `patience` validations that are not better (0: never).
        """
        best_loss = math.inf if self.best_loss is None else self.best_loss
        if self.best_score is None or (score, -loss) > (self.best_score, -best_loss):
            self.best_loss, self.best_score, self.best_step = loss, score, self.step
            self.stale = 0
            return True
        self.stale += 1
        self.stopped = 0 < patience <= self.stale
        return False


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


@dataclass(frozen=True)
class Outcome:
    """Losses of a run, and its answers to held-out inputs beside those of its `baseline`.

    `base` and `tuned` are None without validation data. `inputs` says how many inputs were answered
    and how many there are, where not all were.
    """

    progress: TrainingProgress
    validation_loss: float | None = None
    base: Evaluation | None = None
    tuned: Evaluation | None = None
    inputs: tuple[int, int] | None = None

    @property
    def scores(self) -> dict[str, Any]:
        """The scores as JSON values, for the provenance of the result."""
        scores: dict[str, Any] = {}
        if self.validation_loss is not None:
            scores["validation_loss"] = round(self.validation_loss, 4)
        progress = self.progress
        scores["loss"] = {"first": progress.first, "last": progress.last, "base": progress.base}
        if self.base is not None and self.tuned is not None:
            alone = "task_alone" if progress.on_task else "base_alone"
            scores["bleu"] = round(self.tuned.bleu, 2)
            scores[f"bleu_of_{alone}"] = round(self.base.bleu, 2)
            scores["bleu_signature"] = self.tuned.signature
            scores["rouge"] = self.tuned.rouge.rounded()
            scores[f"rouge_of_{alone}"] = self.base.rouge.rounded()
            if self.inputs is not None:
                scores["scored_inputs"], scores["validation_inputs"] = self.inputs
        return scores

    @property
    def faults(self) -> list[str]:
        """Why the run has not learned its task; empty if it has."""
        faults = [self.progress.fault] if self.progress.fault else []
        base, tuned = self.base, self.tuned
        if base is not None and tuned is not None and not tuned.bleu > base.bleu:
            faults.append(
                "its answers to held-out inputs are no better than those of the"
                f" {self.progress.baseline} (BLEU {tuned.bleu:.1f} and {base.bleu:.1f})"
            )
        return faults
