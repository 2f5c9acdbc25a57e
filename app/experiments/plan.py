"""What identifies a run of an experiment: its settings, and the digest that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from app.training.methods.names import ADAPTER_SHARES, WEIGHT_METHODS
from app.training.recipe import Recipe

_DIGEST_LENGTH = 16
_SIZED: Mapping[str, Mapping[str, Any]] = {
    name: {"method": "adapter", "adapter_share": share} for name, share in ADAPTER_SHARES.items()
}
"""Names of the paper that stand for a method with a size."""


@dataclass(frozen=True)
class RunSettings:
    """One training run of an experiment.

    `data_size`: pairs of input and target (0: all). `development`: further pairs that choose the
    best state (0: the last state counts); with all pairs, the last state counts, and its loss is
    measured on so many pairs of inputs that are held out. `lr`, `batch_size`, `warmup_steps` and
    the number of steps are the model's defaults where they are None or 0. `method` is one of
    `polyprefix train`, or an adapter with its share of the model, as `adapter-3%`. `dtype` is that
    of products, in training and in decoding.
    """

    experiment: str
    method: str
    length: int = 10
    words: str | None = None
    data_size: int = 0
    subset_seed: int = 0
    development: int = 0
    lr: float | None = None
    batch_size: int | None = None
    epochs: int | None = None
    max_steps: int = 0
    warmup_steps: int | None = None
    dtype: str = "fp32"
    seed: int = 101

    def recipe(self) -> Recipe:
        """The recipe of the run, not yet completed for a model."""
        named: Mapping[str, Any] = _SIZED.get(self.method, {"method": self.method})
        return Recipe(
            **named,
            length=self.length or None,
            dtype=self.dtype,
            initial_words=self.words,
            lr=self.lr,
            batch_size=self.batch_size,
            epochs=self.epochs,
            max_steps=self.max_steps,
            warmup_steps=self.warmup_steps,
            keep="best" if self.development and self.data_size else "last",
            seed=self.seed,
        )

    @property
    def has_length(self) -> bool:
        """Whether the method trains positions, not weights."""
        return _SIZED.get(self.method, {"method": self.method})["method"] not in WEIGHT_METHODS

    def digest(self, context: Mapping[str, Any]) -> str:
        """The name of the run: SHA-256 over its settings and `context` (model, data, decoding)."""
        text = json.dumps([asdict(self), dict(context)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]

    def label(self) -> str:
        """The run in a few words, for progress and lists."""
        parts = [self.method]
        if self.has_length:
            parts.append(f"length {self.length}")
        if self.words is not None:
            parts.append(f"from '{self.words}'")
        if self.data_size:
            parts.append(f"{self.data_size} pairs (subset {self.subset_seed})")
        if self.lr is not None:
            parts.append(f"rate {self.lr:g}")
        return ", ".join([*parts, f"seed {self.seed}"])
