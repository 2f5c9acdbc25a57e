"""The recipe of a training run: every setting that affects the result, except data and model.

The base model's family and size choose the settings that are not given.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.errors import InvalidRequest
from app.prefix.spec import MODULES

MAX_LENGTH = 1024
HIDDEN = 512
"""Width of the reparameterisation that the authors used for table-to-text on GPT-2."""
HIDDEN_WITH_ENCODER = 800
"""Width that they used for summaries on BART."""
EPOCHS = 10
"""Passes over the data that the authors used for table-to-text."""


@dataclass(frozen=True)
class Pace:
    """Rate, batch size and number of steps for base models of up to `parameters` parameters.

    `EPOCHS` passes give the steps, at least `min_steps` and at most `max_steps` (0: no limit).
    """

    parameters: float
    lr: float
    batch_size: int
    warmup_steps: int
    min_steps: int = 0
    max_steps: int = 0


PACES = (
    Pace(50e6, lr=3e-3, batch_size=8, warmup_steps=30, min_steps=200, max_steps=400),
    Pace(250e6, lr=4e-4, batch_size=8, warmup_steps=30, min_steps=200),
    Pace(math.inf, lr=5e-5, batch_size=5, warmup_steps=0),
)
"""Smallest models first. The first pace was measured on the demo GPT-2 and BART. The last one is
the authors' for GPT-2 medium, GPT-2 large and BART large. The middle one is an interpolation."""


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run.

    `length`: positions of the prefix in each of `modules` (empty: all modules of the model).
    `hidden`: width of the reparameterisations. `model_dropout`: whether the frozen model uses its
    dropout during training. `for_model` fills in what is None: `hidden` and `model_dropout` by the
    model's family, `lr`, `batch_size`, `warmup_steps` and the number of steps by its size.
    `max_source`: tokens of a source that an encoder reads (0: as many as it can); the rest is cut.
    `max_steps`: 0 means all steps of `epochs`. The learning rate rises over `warmup_steps`, then
    falls linearly to 0. `initial_words`: the prefix starts from the keys and values of this text.
    `keep`: "best" (lowest validation loss) or "last". `validate_every`: steps (0: each epoch).
    """

    length: int = 10
    modules: tuple[str, ...] = ()
    hidden: int | None = None
    model_dropout: bool | None = None
    max_source: int = 0
    epochs: int | None = None
    max_steps: int = 0
    batch_size: int | None = None
    lr: float | None = None
    warmup_steps: int | None = None
    clip_norm: float = 1.0
    initial_words: str | None = None
    keep: str = "best"
    validate_every: int = 0
    seed: int = 101

    def check(self) -> None:
        """Raise InvalidRequest for the first setting that is out of bounds."""
        _between("length", self.length, 1, MAX_LENGTH)
        _between("hidden", self.hidden, 1, 65_536)
        _between("max_source", self.max_source, 0, 1 << 20)
        _between("epochs", self.epochs, 1, 100_000)
        _between("max_steps", self.max_steps, 0, 100_000_000)
        _between("batch_size", self.batch_size, 1, 4096)
        _between("warmup_steps", self.warmup_steps, 0, 100_000_000)
        _between("validate_every", self.validate_every, 0, 100_000_000)
        _between("seed", self.seed, 0, 2**63 - 1)
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value <= 0):
                raise InvalidRequest(f"{name} must be a positive number, not {value}")
        if self.keep not in ("best", "last"):
            raise InvalidRequest(f"keep must be `best` or `last`, not {self.keep!r}")

    def for_model(self, available: Collection[str], parameters: int, num_pairs: int) -> Recipe:
        """The complete recipe for a model with these modules and parameters.

        The defaults are the authors': BART has a prefix in each attention, width 800 and dropout;
        GPT-2 has width 512 and no dropout. Rate, batch size and steps come from `PACES`.
        Raises InvalidRequest for settings that such a model does not have.
        """
        pace = next(pace for pace in PACES if parameters <= pace.parameters)
        paced = replace(
            self,
            batch_size=self.batch_size or pace.batch_size,
            lr=self.lr or pace.lr,
            warmup_steps=pace.warmup_steps if self.warmup_steps is None else self.warmup_steps,
        )
        if self.epochs is None and not self.max_steps:
            steps = max(pace.min_steps, paced.total_steps(num_pairs))
            paced = replace(paced, max_steps=min(steps, pace.max_steps or steps))
        return paced.for_modules(available)

    def for_modules(self, available: Collection[str]) -> Recipe:
        """The recipe for a model with these modules. Rate, batch size and steps do not change."""
        with_encoder = "encoder" in available
        modules = self.modules or tuple(available)
        for name in modules:
            if name not in available:
                known = ", ".join(available)
                raise InvalidRequest(f"modules: this base model has no {name!r}; it has {known}")
        if "decoder" not in modules:
            raise InvalidRequest("modules: every prefix needs the module decoder; add it")
        if with_encoder and self.initial_words is not None:
            raise InvalidRequest(
                "initial_words: a model with an encoder cannot start from words, because they have"
                " no keys and values in all three modules; leave the option out"
            )
        if not with_encoder and self.max_source:
            raise InvalidRequest("max_source: this base model has no encoder; leave the option out")
        hidden = HIDDEN_WITH_ENCODER if with_encoder else HIDDEN
        return replace(
            self,
            modules=tuple(name for name in MODULES if name in modules),
            hidden=self.hidden or hidden,
            model_dropout=with_encoder if self.model_dropout is None else self.model_dropout,
        )

    def total_steps(self, num_pairs: int) -> int:
        """Number of optimiser steps of the whole run on `num_pairs` pairs."""
        return self.max_steps or (self.epochs or EPOCHS) * self.steps_per_epoch(num_pairs)

    def steps_per_epoch(self, num_pairs: int) -> int:
        """Number of batches in one pass over the data; the last may be smaller."""
        return math.ceil(num_pairs / (self.batch_size or 1))

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        peak, warmup = self.lr or 0.0, self.warmup_steps or 0
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * max(0.0, (total - step) / max(1, total - warmup))

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, for checkpoints and provenance."""
        return {**asdict(self), "modules": list(self.modules)}


def _between(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}")
