"""Tokens drawn from distributions: the inverse of each row's cumulative distribution at its noise.

Rows are drawn together, and each draw depends on its own row alone: no reduction mixes rows. No row
is sorted as a whole, however flat it is. Tokens that are equally probable stand in the order of the
vocabulary. Logits are [rows, vocabulary], finite or -inf; noise is fp64 [rows] in [0, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from app.engine.decoding.ranking import Ranking, best_first
from app.engine.decoding.reductions import top
from app.engine.request import SamplingParams

_BLOCK = 128
"""Tokens of the vocabulary whose probabilities are summed before one of them is looked for."""

_FEW = 1024
"""The largest top-k whose tokens are found by their values."""

Draw = Callable[[torch.Tensor, Sequence[SamplingParams], torch.Tensor], torch.Tensor]
"""From logits, what each row asks for, and noise to int64 tokens [rows]."""


def draw_of(sampling: SamplingParams) -> Draw:
    """How a row is drawn; rows with the same answer can be drawn together."""
    if 0 < sampling.top_k <= _FEW:
        return _among_few
    if sampling.top_k or sampling.top_p < 1:
        return _best_first
    return _in_order


def _in_order(
    logits: torch.Tensor, sampling: Sequence[SamplingParams], noise: torch.Tensor
) -> torch.Tensor:
    """Draw in the order of the vocabulary: first a block of tokens, then one of them."""
    probabilities = torch.softmax(logits, dim=-1)
    if any(one.min_p > 0 for one in sampling):
        probabilities.masked_fill_(~_likely(probabilities, sampling), 0)
    rows, vocabulary = probabilities.shape
    whole = vocabulary - vocabulary % _BLOCK
    sums = probabilities[:, :whole].view(rows, -1, _BLOCK).sum(dim=-1)
    if whole < vocabulary:
        sums = torch.cat([sums, probabilities[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    cumulative = sums.double().cumsum(dim=-1)
    target = noise[:, None] * cumulative[:, -1:]
    block = _find(cumulative, target)
    before = cumulative.gather(1, block) - sums.double().gather(1, block)
    at = block * _BLOCK + torch.arange(_BLOCK, device=noise.device)
    inside = probabilities.gather(1, at.clamp(max=vocabulary - 1)).masked_fill(at >= vocabulary, 0)
    token = _find(inside.double().cumsum(dim=-1), (target - before).clamp(min=0))
    return at.gather(1, token)[:, 0]


def _among_few(
    logits: torch.Tensor, sampling: Sequence[SamplingParams], noise: torch.Tensor
) -> torch.Tensor:
    """Draw in descending order of probability from the `top_k` best tokens."""
    counts = [min(one.top_k, logits.shape[1]) for one in sampling]
    count = _column(counts, noise).long()
    least = top(logits, max(counts))[0].gather(1, count - 1)
    # what is banned is none of the best
    tokens, values = best_first(logits, logits >= least.clamp_(min=torch.finfo(least.dtype).min))
    # as many as are equal to the last one are too many
    rank = torch.arange(tokens.shape[1], device=noise.device)
    weights = torch.exp((values - values[:, :1]).double()).masked_fill_(rank >= count, 0)
    cumulative = weights.cumsum(dim=-1)
    top_p = _column([one.top_p for one in sampling], noise)
    kept = (cumulative - weights < top_p * cumulative[:, -1:]) | (rank == 0)
    kept &= weights >= _column([one.min_p for one in sampling], noise)
    cumulative = weights.masked_fill_(~kept, 0).cumsum(dim=-1)
    return tokens.gather(1, _find(cumulative, noise[:, None] * cumulative[:, -1:]))[:, 0]


def _best_first(
    logits: torch.Tensor, sampling: Sequence[SamplingParams], noise: torch.Tensor
) -> torch.Tensor:
    """Draw in descending order of probability among the first tokens that all filters keep.

    A filter keeps the first so many of them: each says how much mass there is up to its last one.
    """
    probabilities = torch.softmax(logits, dim=-1)
    vocabulary = logits.shape[1]
    ranking = Ranking(logits, probabilities)
    kept = ranking.total
    if any(0 < one.top_k < vocabulary for one in sampling):
        counts = [min(one.top_k or vocabulary, vocabulary) for one in sampling]
        kept = ranking.mass_to_rank(_column(counts, noise) - 1)
    if any(one.top_p < 1 for one in sampling):
        top_p = _column([one.top_p for one in sampling], noise)
        kept = ranking.at_mass((top_p * kept).ceil_().clamp_(min=1) - 1)[1]
    if any(one.min_p > 0 for one in sampling):
        kept = torch.minimum(kept, ranking.mass_of(_likely(probabilities, sampling)))
    return ranking.at_mass(torch.minimum((noise[:, None] * kept).floor_(), kept - 1))[0][:, 0]


def _likely(probabilities: torch.Tensor, sampling: Sequence[SamplingParams]) -> torch.Tensor:
    """Which tokens min-p keeps."""
    least = _column([one.min_p for one in sampling], probabilities)
    return probabilities >= least * probabilities.amax(dim=-1, keepdim=True)


def _find(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """First column [rows, 1] whose sum exceeds `target` [rows, 1], or reaches the total."""
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))
    index = torch.searchsorted(cumulative, torch.minimum(target, below), right=True)
    return index.clamp_(max=cumulative.shape[1] - 1)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
