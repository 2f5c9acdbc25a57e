"""What two beam searches found, compared where rounding could not have decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

ROUNDING = 2e-5
"""By how much logits may differ between two exact computations of them."""


@dataclass(frozen=True)
class Result:
    """A sequence without its prompt, end-of-text included, and what it was ranked by."""

    token_ids: tuple[int, ...]
    score: float | None


def found_by(output: Any, start: int) -> list[Result]:
    """The results of transformers' beam search, whose sequences begin with `start` tokens."""
    lengths = (output.beam_indices >= 0).sum(dim=1).tolist()
    return [
        Result(tuple(row[start : start + length]), score)
        for row, length, score in zip(
            output.sequences.tolist(), lengths, output.sequences_scores.tolist(), strict=True
        )
    ]


class _Noise(LogitsProcessor):
    """Rounds differently."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(scores.shape, generator=self._generator) - 0.5
        return scores + 2 * ROUNDING * noise


def assert_same_results(ours: Sequence[Result], search: Callable[..., list[Result]]) -> None:
    """Tokens and scores equal those of `search`, unless it answers to other rounding otherwise."""
    expected = search()
    if [item.token_ids for item in ours] != [item.token_ids for item in expected]:
        for seed in range(20):
            noisy = search(logits_processor=LogitsProcessorList([_Noise(seed)]))
            if [item.token_ids for item in noisy] != [item.token_ids for item in expected]:
                return
    assert [item.token_ids for item in ours] == [item.token_ids for item in expected]
    scores = [item.score for item in expected]
    assert [item.score for item in ours] == pytest.approx(scores, abs=1e-4)
