"""Sampling one row at a time, by a sort: what batched sampling must not differ from."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from app.engine.decoding.philox import uniform
from app.engine.request import SamplingParams
from app.engine.sequence import TokenSequence

NEAR = 1e-6
"""Draws that lie so close to a boundary between two tokens may fall on either side."""


def sample_row(
    logits: torch.Tensor, row: TokenSequence, eos_token_ids: Collection[int]
) -> set[int]:
    """The tokens that `row` may take from its `logits` [vocabulary]: one, but near a boundary."""
    sampling = row.request.sampling
    adjusted = process_row(logits.clone(), row, eos_token_ids)
    if sampling.temperature == 0:
        return {int(adjusted.argmax())}
    if adjusted.max() == -math.inf:
        return set(range(len(adjusted)))
    noise = uniform(row.seed, row.index, len(row.token_ids))
    scaled = adjusted / max(sampling.temperature, 1e-6)
    order, cumulatives = [], []
    for near in (0.0, -NEAR, NEAR):
        ids, kept = _kept(scaled, sampling, near)
        order.append(ids)
        cumulatives.append(kept.double().cumsum(0))
    return {
        _pick(ids, cumulative, noise + near)
        for ids, cumulative in zip(order, cumulatives, strict=True)
        for near in (0.0, -NEAR, NEAR)
    }


def process_row(
    logits: torch.Tensor, row: TokenSequence, eos_token_ids: Collection[int]
) -> torch.Tensor:
    """Apply bans, biases and penalties in place to [vocabulary] logits (or log-probabilities)."""
    sampling = row.request.sampling
    logits[list(banned_tokens(row.token_ids, sampling.no_repeat_ngram_size))] = -math.inf
    if row.must_not_end:
        logits[list(eos_token_ids)] = -math.inf
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(row.token_ids)))
        values, penalty = logits[seen], sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    generated = row.token_ids[row.num_prompt :]
    if generated:
        ids, counts = torch.unique(torch.tensor(generated), return_counts=True)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits


def banned_tokens(token_ids: list[int], size: int) -> set[int]:
    """Tokens that would complete an n-gram that `token_ids` already has."""
    if size < 1:
        return set()
    context = token_ids[len(token_ids) - size + 1 :]
    starts = range(len(token_ids) - size + 1)
    return {token_ids[at + size - 1] for at in starts if token_ids[at : at + size - 1] == context}


def _kept(
    logits: torch.Tensor, sampling: SamplingParams, near: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids in the order of the cumulative distribution, and what the filters leave of it."""
    if sampling.top_k == 0 and sampling.top_p >= 1:
        probabilities = torch.softmax(logits, dim=-1)
        probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
        return torch.arange(len(logits)), probabilities
    values, ids = logits.sort(descending=True, stable=True)
    count = min(sampling.top_k or len(ids), len(ids))
    probabilities, ids = torch.softmax(values[:count], dim=-1), ids[:count]
    before = probabilities.double().cumsum(0) - probabilities
    keep = (before < sampling.top_p + near) & (probabilities >= sampling.min_p * probabilities[0])
    keep[0] = True
    return ids, torch.where(keep, probabilities, 0.0)


def _pick(ids: torch.Tensor, cumulative: torch.Tensor, noise: float) -> int:
    """The token at which the cumulative sum first exceeds `noise` of the total."""
    inside = min(max(noise, 0.0), math.nextafter(1.0, 0.0))
    index = int(torch.searchsorted(cumulative, inside * cumulative[-1], right=True))
    last = int(torch.searchsorted(cumulative, cumulative[-1]))
    return int(ids[min(index, last)])
