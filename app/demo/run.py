"""A pretraining run in a folder: steps within a time budget, checkpoints, resuming.

An `Objective` brings the model and its losses.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from app.demo.optimizer import Muon
from app.training.checkpoint import (
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

_log = logging.getLogger(__name__)

CHECKPOINT = "pretraining.checkpoint"
_REPORT_STEPS = 20
_LONGEST_STEP_S = 10.0
"""The most seconds that one step can take off the budget, in case the process is suspended."""
_LONGEST_WAVE = 512.0


@dataclass(frozen=True)
class Schedule:
    """The optimiser settings of a run; learning rates are peak rates."""

    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    weight_decay: float = 0.02
    warmup_steps: int = 50
    final_share: float = 0.03


@dataclass
class Progress:
    """The progress of a run; every checkpoint has it."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Objective(Protocol):
    """A model and its losses, step by step."""

    @property
    def model(self) -> nn.Module: ...

    def backward(self, step: int) -> tuple[float, int]:
        """Add the gradients of step `step`; return its loss and its number of tokens."""

    def validate(self) -> float:
        """The loss on held-out data."""


def optimizers_for(
    model: nn.Module, blocks: str, schedule: Schedule
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks (`blocks` in their names), AdamW for the rest."""
    matrices: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        inside = blocks in name and parameter.ndim == 2
        (matrices if inside else others).append(parameter)
    return [
        Muon(matrices, schedule.matrix_lr, weight_decay=schedule.weight_decay),
        torch.optim.AdamW(others, schedule.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def lr_share(step: int, done: float, schedule: Schedule) -> float:
    """The share of the peak rate after `done` (0 to 1) of the budget: warm-up, then a cosine."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return schedule.final_share + (1 - schedule.final_share) * cosine


class PretrainingRun:
    """One pretraining run in a folder; the names of the model's blocks contain `blocks`."""

    def __init__(self, out: Path, objective: Objective, schedule: Schedule, *, blocks: str) -> None:
        self.out, self.objective, self.schedule = out, objective, schedule
        self.progress = Progress()
        self._optimizers = optimizers_for(objective.model, blocks, schedule)

    def train(self, seconds: float, *, save_every: int = 100, max_steps: int | None = None) -> None:
        """Train for `seconds` of work, or to step `max_steps`."""
        self.objective.model.train()
        losses: list[float] = []
        progress = self.progress
        while progress.seconds < seconds and (max_steps is None or progress.step < max_steps):
            started = time.monotonic()
            loss, tokens = self._step(progress.seconds / seconds)
            losses.append(loss)
            progress.step += 1
            progress.tokens += tokens
            progress.seconds += min(time.monotonic() - started, _LONGEST_STEP_S)
            if progress.step % save_every == 0:
                self.save()
                _log.info("validation loss %.4f", self.objective.validate())
            if progress.step % _REPORT_STEPS == 0:
                self._report(sum(losses) / len(losses), seconds)
                losses.clear()
        self.save()

    def save(self) -> None:
        """Write the checkpoint; it replaces the previous one."""
        named = self.objective.model.named_parameters()
        tensors: dict[str, torch.Tensor] = {f"model.{name}": tensor for name, tensor in named}
        for index, optimizer in enumerate(self._optimizers):
            tensors |= optimizer_tensors(optimizer, f"optimizer{index}")
        save_checkpoint(self.out / CHECKPOINT, tensors, asdict(self.progress))

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; return False if there is none."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return False
        saved = load_checkpoint(path)
        with torch.no_grad():
            for name, parameter in self.objective.model.named_parameters():
                parameter.copy_(saved.tensors[f"model.{name}"])
        for index, optimizer in enumerate(self._optimizers):
            restore_optimizer(optimizer, f"optimizer{index}", saved.tensors)
        self.progress = Progress(**saved.state)
        return True

    def _step(self, done: float) -> tuple[float, int]:
        share = lr_share(self.progress.step, done, self.schedule)
        peaks = (self.schedule.matrix_lr, self.schedule.other_lr)
        for optimizer, peak in zip(self._optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * share
        loss, tokens = self.objective.backward(self.progress.step)
        torch.nn.utils.clip_grad_norm_(self.objective.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss, tokens

    def _report(self, loss: float, seconds: float) -> None:
        progress = self.progress
        _log.info(
            "step %d  loss %.4f  %s tokens  %.0f tokens/s  %.1f of %.1f min",
            *(progress.step, loss, f"{progress.tokens:,}"),
            *(progress.tokens / progress.seconds, progress.seconds / 60, seconds / 60),
        )


def waves(positions: int, width: int) -> torch.Tensor:
    """Sines and cosines of [positions, width] as the start of learned positions.

    Copying needs to find the previous token; a short run should not have to learn that.
    """
    rates = _LONGEST_WAVE ** -torch.linspace(0, 1, width // 2)
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1) * (width / 2) ** -0.5
