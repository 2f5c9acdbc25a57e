"""The recipe of a training run: every setting that affects the result, except data and model.

The base model's family and size choose the settings that are not given.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from app.errors import InvalidRequest
from app.prefix.spec import MODULES
from app.training.methods.low_data import LOW_DATA_SUMMARIES, LOW_DATA_TABLES
from app.training.methods.names import METHODS_WITH, WEIGHT_METHODS, check_family, check_method

MAX_LENGTH = 1024
LENGTH = 10
"""Length of a prefix if none is given: the authors' default."""
HIDDEN = 512
"""Width of the reparameterisation that the authors used for table-to-text on GPT-2."""
HIDDEN_WITH_ENCODER = 800
"""Width that they used for summaries on BART."""
EPOCHS = 10
"""Passes over the data that the authors used for table-to-text."""

VALIDATION_PAIRS = 128
"""Held-out pairs that choose the best state: enough to tell states apart, and a small part of a
run's time."""


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
    Pace(250e6, lr=1e-3, batch_size=8, warmup_steps=30, min_steps=200),
    Pace(math.inf, lr=5e-5, batch_size=5, warmup_steps=0),
)
"""Smallest models first. The first pace was measured on the demo GPT-2 and BART, the rate of the
second on SmolLM2-135M. The last one is the authors' for GPT-2 medium and large and BART large."""


RATE_SHARES = {
    "embedding": 10.0,
    "finetune": 0.1,
    "finetune-top2": 0.3,
    "lora": 3.0,
    "peft": 100.0,
    "prefix-direct": 100.0,
}
"""How many times the rate of `PACES` a method starts with on models of up to 250 million
parameters: near the best of four or more that `polyprefix experiment rates` tried on the demo GPT-2
or on SmolLM2-135M; for `finetune-top2` a guess. Above, all methods have the authors' rate."""

METRICS = ("loss", "bleu", "rouge_l", "slots")
"""What may select the best state: the loss, scores of answers, or the share of answers that say all
of their inputs' values and invent none."""
PRESETS = ("full-data", "low-data")
_PATIENCE = 5
"""Validations without a better one that end a run with little data."""


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
    `initial_prefix`: a prefix file to start from instead. `initial_task_mean`: start from the mean
    over the positions of the frozen prefix that the trained one stands behind. `length` 0: as many
    as the words have.
    `keep`: "best" (by `metric` on the validation data) or "last". `validate_every`: steps (0: each
    epoch). `validation_pairs`: so many held-out pairs, drawn by the seed, give the loss, and so
    many inputs are answered for another `metric` (0: all).
    `early_stopping`: the run ends after so many validations without a better one (0: off).
    `accumulate`: batches whose gradients make one step. `depth`: hidden layers of the networks.
    `preset`: "low-data" chooses the authors' settings for 50 to 500 pairs where none are given;
    those of early stopping only where there is validation data.
    """

    method: str = "prefix"
    preset: str = "full-data"
    length: int | None = None
    modules: tuple[str, ...] = ()
    hidden: int | None = None
    depth: int = 1
    model_dropout: bool | None = None
    prefix_dropout: float = 0.0
    label_smoothing: float = 0.0
    dtype: str = "fp32"
    gradient_checkpointing: bool = False
    adapter_share: float = 0.03
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ()
    max_source: int = 0
    epochs: int | None = None
    max_steps: int = 0
    batch_size: int | None = None
    accumulate: int = 1
    lr: float | None = None
    warmup_steps: int | None = None
    clip_norm: float = 1.0
    initial_words: str | None = None
    initial_prefix: str | None = None
    initial_task_mean: bool = False
    keep: str = "best"
    metric: str = "loss"
    early_stopping: int = 0
    validate_every: int = 0
    validation_pairs: int = VALIDATION_PAIRS
    seed: int = 101

    @property
    def positions(self) -> int:
        """The length, if one is given or known, else the default."""
        return self.length or LENGTH

    @property
    def has_start(self) -> bool:
        """Whether the prefix starts from something that the recipe names, and not at random."""
        return bool(self._starts())

    def _starts(self) -> list[str]:
        return [name for name in _STARTS if getattr(self, name) not in (None, False)]

    def check(self) -> None:
        """Raise InvalidRequest for the first setting that is out of bounds."""
        check_method(self.method)
        with_words = self.initial_words is not None
        _between("length", self.length, 0 if with_words else 1, MAX_LENGTH)
        _between("hidden", self.hidden, 1, 65_536)
        _between("depth", self.depth, 1, 2)
        _between("accumulate", self.accumulate, 1, 4096)
        _between("early_stopping", self.early_stopping, 0, 100_000)
        _between("lora_rank", self.lora_rank, 1, 1024)
        _between("max_source", self.max_source, 0, 1 << 20)
        _between("epochs", self.epochs, 1, 100_000)
        _between("max_steps", self.max_steps, 0, 100_000_000)
        _between("batch_size", self.batch_size, 1, 4096)
        _between("warmup_steps", self.warmup_steps, 0, 100_000_000)
        _between("validate_every", self.validate_every, 0, 100_000_000)
        _between("validation_pairs", self.validation_pairs, 0, 100_000_000)
        _between("seed", self.seed, 0, 2**63 - 1)
        for name in ("lr", "clip_norm", "lora_alpha", "adapter_share"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value <= 0):
                raise InvalidRequest(f"{name} must be a positive number, not {value}")
        for name in ("prefix_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 0 and below 1")
        if self.adapter_share > 1:
            raise InvalidRequest("adapter_share must be at most 1; 0.03 means 3 % of the model")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                said = " or ".join(f"`{each}`" for each in known)
                raise InvalidRequest(f"{name} must be {said}, not {getattr(self, name)!r}")
        self._check_start()
        self._check_used()

    def check_validation(self, *, has_data: bool, has_score: bool) -> None:
        """Raise InvalidRequest if a setting needs validation data, or a score, that is missing."""
        if self.metric != "loss" and not (has_data and has_score):
            raise InvalidRequest(
                f"metric: {self.metric} needs validation data; give a validation file",
                param="metric",
            )
        if self.early_stopping and not has_data:
            raise InvalidRequest(
                "early_stopping needs validation data; give a validation file",
                param="early_stopping",
            )

    def check_start(self, *, is_behind: bool) -> None:
        """Raise InvalidRequest if the start is that of a prefix to stand behind, and none is."""
        if self.initial_task_mean and not is_behind:
            raise InvalidRequest(
                "initial_task_mean: it needs a prefix to train on; give one as `on`",
                param="initial_task_mean",
            )

    def _check_start(self) -> None:
        """Raise InvalidRequest unless the method can start as asked."""
        starts = self._starts()
        if len(starts) > 1:
            raise InvalidRequest(f"{' and '.join(starts)}: give one of them")
        for name in starts:
            if self.method not in _STARTS[name]:
                raise InvalidRequest(f"{name}: the method {self.method} cannot start from it")

    def _check_used(self) -> None:
        """Raise InvalidRequest for a setting that the method does not use."""
        for name, methods in METHODS_WITH.items():
            if self.method not in methods and getattr(self, name) != getattr(Recipe, name):
                raise InvalidRequest(
                    f"{name}: the method {self.method} does not use it; leave it out", param=name
                )

    def for_model(
        self,
        available: Collection[str],
        parameters: int,
        num_pairs: int,
        *,
        has_validation: bool = True,
    ) -> Recipe:
        """The complete recipe for a model with these modules and parameters.

        The defaults are the authors': BART has a prefix in each attention, width 800 and dropout;
        GPT-2 has width 512 and no dropout. Rate, batch size and steps come from `PACES`.
        Raises InvalidRequest for settings that such a model does not have.
        """
        pace = next(pace for pace in PACES if parameters <= pace.parameters)
        share = RATE_SHARES.get(self.method, 1.0) if pace is not PACES[-1] else 1.0
        preset = self._with_preset(num_pairs, "encoder" in available, has_validation)
        paced = replace(
            preset,
            length=LENGTH if preset.length is None else preset.length,
            batch_size=preset.batch_size or pace.batch_size,
            lr=preset.lr or pace.lr * share,
            warmup_steps=pace.warmup_steps if preset.warmup_steps is None else preset.warmup_steps,
        )
        if paced.epochs is None and not paced.max_steps:
            steps = max(pace.min_steps, paced.total_steps(num_pairs))
            paced = replace(paced, max_steps=min(steps, pace.max_steps or steps))
        return paced.for_modules(available)

    def _with_preset(self, num_pairs: int, with_encoder: bool, has_validation: bool) -> Recipe:
        """The authors' low-data settings where none are given (Li & Liang 2021, appendix A.2).

        Their rate of 5e-5 for GPT-2 medium and BART large is that of `PACES`.
        """
        if self.preset != "low-data":
            return self
        low = LOW_DATA_SUMMARIES if with_encoder else LOW_DATA_TABLES
        free = self._starts() in ([], ["initial_words"])
        can_start = free and self.method in _STARTS["initial_words"]
        steps, epochs = self.max_steps, self.epochs
        if not steps and epochs is None:
            steps = low.steps_of(self.method, num_pairs)
            epochs = low.epochs_of(self.method, num_pairs)
        return replace(
            self,
            initial_words=(self.initial_words or low.words) if can_start else None,
            length=(0 if can_start else None) if self.length is None else self.length,
            batch_size=self.batch_size or low.batch_size_of(self.method),
            warmup_steps=low.warmup_steps if self.warmup_steps is None else self.warmup_steps,
            max_steps=steps,
            epochs=epochs,
            early_stopping=self.early_stopping or (_PATIENCE if has_validation else 0),
        )

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
        check_family(self.method, with_encoder=with_encoder)
        if not with_encoder and self.max_source:
            raise InvalidRequest("max_source: this base model has no encoder; leave it out")
        drops = with_encoder or self.method in WEIGHT_METHODS
        hidden = HIDDEN_WITH_ENCODER if with_encoder else HIDDEN
        return replace(
            self,
            modules=tuple(name for name in MODULES if name in modules),
            hidden=self.hidden or hidden,
            model_dropout=drops if self.model_dropout is None else self.model_dropout,
        )

    def total_steps(self, num_pairs: int) -> int:
        """Number of optimiser steps of the whole run on `num_pairs` pairs."""
        return self.max_steps or (self.epochs or EPOCHS) * self.steps_per_epoch(num_pairs)

    def steps_per_epoch(self, num_pairs: int) -> int:
        """Number of batches in one pass over the data; the last may be smaller."""
        return math.ceil(num_pairs / ((self.batch_size or 1) * self.accumulate))

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        peak, warmup = self.lr or 0.0, self.warmup_steps or 0
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * max(0.0, (total - step) / max(1, total - warmup))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The recipe that `as_dict` has told; TypeError if there are settings that none has."""
        made: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        return cls(**made)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, for checkpoints and provenance."""
        return {
            **asdict(self),
            "modules": list(self.modules),
            "lora_targets": list(self.lora_targets),
        }


_CHOICES = {
    "keep": ("best", "last"),
    "metric": METRICS,
    "dtype": ("fp32", "bf16"),
    "preset": PRESETS,
}
_STARTS = {
    "initial_words": ("prefix", "prefix-direct", "embedding"),
    "initial_prefix": ("prefix", "prefix-direct"),
    "initial_task_mean": ("prefix", "prefix-direct"),
}
"""Which methods can start from words, a prefix file or the mean of a task's prefix."""


def _between(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}")
