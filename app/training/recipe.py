"""How a prefix is trained: every number that decides the outcome, besides data and base model.

Knows nothing about tensors, files or models.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from app.errors import InvalidRequest

MAX_LENGTH = 1024


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; the defaults are the authors' for GPT-2 medium.

    `length` is the number of prefix positions; `hidden` the width of the reparameterisation.
    `max_steps` 0 means all the steps of `epochs`. The learning rate rises over `warmup_steps` and
    then falls linearly to 0. `initial_words` starts the prefix from the keys and values of a text.
    `keep` is "best" (lowest validation loss) or "last". `validate_every` is in steps (0: once an
    epoch).
    """

    length: int = 10
    hidden: int = 512
    epochs: int = 10
    max_steps: int = 0
    batch_size: int = 5
    lr: float = 5e-5
    warmup_steps: int = 0
    clip_norm: float = 1.0
    initial_words: str | None = None
    keep: str = "best"
    validate_every: int = 0
    seed: int = 101

    def check(self) -> None:
        """InvalidRequest names the first setting that is out of bounds."""
        _between("length", self.length, 1, MAX_LENGTH)
        _between("hidden", self.hidden, 1, 65_536)
        _between("epochs", self.epochs, 1, 100_000)
        _between("max_steps", self.max_steps, 0, 100_000_000)
        _between("batch_size", self.batch_size, 1, 4096)
        _between("warmup_steps", self.warmup_steps, 0, 100_000_000)
        _between("validate_every", self.validate_every, 0, 100_000_000)
        _between("seed", self.seed, 0, 2**63 - 1)
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise InvalidRequest(f"{name} must be a positive number, not {value}")
        if self.keep not in ("best", "last"):
            raise InvalidRequest(f"keep must be `best` or `last`, not {self.keep!r}")

    def total_steps(self, num_pairs: int) -> int:
        """Optimiser steps of the whole run on `num_pairs` pairs."""
        return self.max_steps or self.epochs * self.steps_per_epoch(num_pairs)

    def steps_per_epoch(self, num_pairs: int) -> int:
        """Batches in one pass over the data; the last may be smaller."""
        return math.ceil(num_pairs / self.batch_size)

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        return self.lr * max(0.0, (total - step) / max(1, total - self.warmup_steps))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and provenance."""
        return asdict(self)


def _between(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}")
