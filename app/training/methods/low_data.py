"""The authors' settings for 50 to 500 pairs (Li & Liang 2021, Appendix A.2 of the ACL version)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.training.methods.names import ADAPTER_SHARES, WEIGHT_METHODS

_LIKE_FINETUNING = frozenset({*WEIGHT_METHODS, *ADAPTER_SHARES})
"""Methods that take the settings of fine-tuning; all others take those of a prefix."""

_BySize = Mapping[int, int]


@dataclass(frozen=True)
class LowDataSettings:
    """Settings for one of the paper's kinds of data.

    Batch size, optimiser steps or else epochs are those of `prefix` and of `finetune`; steps and
    epochs also depend on the number of pairs. `length` is that of the initial words for the paper's
    tokenizers.
    """

    words: str
    length: int
    batch_sizes: Mapping[str, int]
    steps: Mapping[str, _BySize] = field(default_factory=dict)
    epochs: Mapping[str, _BySize] = field(default_factory=dict)
    warmup_steps: int = 100
    lr: float = 5e-5

    def batch_size_of(self, method: str) -> int:
        """Pairs in a step."""
        return self.batch_sizes[_kind(method)]

    def steps_of(self, method: str, num_pairs: int) -> int:
        """Optimiser steps, or 0 where epochs count."""
        return _at(self.steps, method, num_pairs) or 0

    def epochs_of(self, method: str, num_pairs: int) -> int | None:
        """Passes over the data, or None where steps count."""
        return _at(self.epochs, method, num_pairs)


def _kind(method: str) -> str:
    return "finetune" if method in _LIKE_FINETUNING else "prefix"


def _at(table: Mapping[str, _BySize], method: str, num_pairs: int) -> int | None:
    """The number of the smallest size that has room for the pairs, else of the largest."""
    by_size = table.get(_kind(method), {})
    size = min((each for each in by_size if num_pairs <= each), default=max(by_size, default=0))
    return by_size.get(size)


LOW_DATA_TABLES = LowDataSettings(
    words="table-to-text:",
    length=6,
    batch_sizes={"prefix": 10, "finetune": 10},
    steps={
        "prefix": {50: 200, 100: 200, 200: 200, 500: 400},
        "finetune": {50: 100, 100: 100, 200: 200, 500: 400},
    },
)
"""GPT-2 on E2E."""
LOW_DATA_SUMMARIES = LowDataSettings(
    words="summarize",
    length=1,
    batch_sizes={"prefix": 5, "finetune": 6},
    epochs={
        "prefix": {50: 30, 100: 20, 200: 20, 500: 20},
        "finetune": {50: 30, 100: 10, 200: 3, 500: 3},
    },
)
"""BART on XSUM."""
