"""What a training run has reached, as scores, and whether it has learned its task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.evaluation.evaluator import Evaluation
from app.training.progress import TrainingProgress


@dataclass(frozen=True)
class Outcome:
    """Losses of a run, and its answers to held-out inputs beside those of its `baseline`.

    `base` and `tuned` are None without validation data.
    """

    progress: TrainingProgress
    validation_loss: float | None = None
    base: Evaluation | None = None
    tuned: Evaluation | None = None

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
