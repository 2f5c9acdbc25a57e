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
    assert len(ours) == len(expected)
    if _tokens(ours) != _tokens(expected):
        for seed in range(20):
            noise = LogitsProcessorList([_Noise(seed)])
            if _tokens(search(logits_processor=noise)) != _tokens(expected):
                return
    assert _tokens(ours) == _tokens(expected)
    scores = [item.score for item in expected]
    assert [item.score for item in ours] == pytest.approx(scores, rel=1e-5, abs=1e-4)


def _tokens(results: Sequence[Result]) -> list[tuple[int, ...]]:
    """Of results that count: others are copies of one beam at -1e9, equal but for their order."""
    return [item.token_ids for item in results if item.score is None or item.score > -1e6]
