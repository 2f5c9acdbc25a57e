"""From logits to tokens: pure functions over fp32 logits, one row independent of the others.

The order is that of transformers: bans and biases, penalties, temperature, top-k, top-p, min-p;
then the inverse of the cumulative distribution at one uniform number, so that a row's draw depends
on its own logits and on (seed, row, position) alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch

from app.engine.beam import banned_by_ngrams
from app.engine.noise import uniform
from app.engine.plan import Sampled
from app.engine.request import SamplingParams
from app.engine.row import Row

_COLDEST = 1e-6
"""Temperatures below are taken for it: no quotient overflows, and nothing but ties is left open."""

_BLOCK = 128
"""Tokens of the vocabulary that are reduced together in search of the most probable one."""

_CANDIDATES = 1024
"""How many of the most probable tokens top-p looks at before it sorts the whole vocabulary."""


def sample(
    logits: torch.Tensor, rows: Sequence[Row], eos_token_ids: Collection[int]
) -> list[Sampled | None]:
    """Draw the next token of each row from its `logits` [rows, vocabulary], fp32.

    None stands for a row whose logits are not finite (their maximum is NaN or infinite).
    """
    best, greedy = _max(logits)
    finite = torch.isfinite(best).tolist()
    tokens = greedy.tolist()
    for index, row in enumerate(rows):
        barred = row.must_not_end and tokens[index] in eos_token_ids
        if row.forced_token is not None:
            tokens[index] = row.forced_token
        elif finite[index] and (barred or needs_more_than_argmax(row)):
            tokens[index] = _draw(logits[index], row, eos_token_ids)
    chosen = [
        Sampled(row, token) if ok else None
        for row, token, ok in zip(rows, tokens, finite, strict=True)
    ]
    return _with_logprobs(logits, chosen)


def _max(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximum and its first index, [rows] each; in two stages, several times faster on a CPU."""
    rows, vocabulary = logits.shape
    whole = vocabulary - vocabulary % _BLOCK
    if whole == 0:
        best, index = logits.max(dim=-1)
        return best, index
    blocks = logits[:, :whole].view(rows, -1, _BLOCK)
    best, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(rows, device=logits.device), block].argmax(dim=-1)
    index = block * _BLOCK + inside
    if whole == vocabulary:
        return best, index
    rest, at = logits[:, whole:].max(dim=-1)
    better = (rest > best) | rest.isnan()
    return torch.where(better, rest, best), torch.where(better, whole + at, index)


def needs_more_than_argmax(row: Row) -> bool:
    """Whether the row's next token can differ from the most probable one that is not barred."""
    sampling = row.request.sampling
    return bool(
        sampling.temperature > 0
        or sampling.logit_bias
        or sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.no_repeat_ngram_size
    )


def score_tokens(
    logits: torch.Tensor, row: Row, token_ids: Sequence[int], num_top: int
) -> list[Sampled]:
    """Log-probabilities of given tokens under `logits` [tokens, vocabulary], with alternatives."""
    logprobs = torch.log_softmax(logits, dim=-1)
    index = torch.tensor(token_ids, device=logits.device)[:, None]
    values = logprobs.gather(1, index)[:, 0].tolist()
    tops = _top(logprobs, num_top)
    return [
        Sampled(row, token, value, top)
        for token, value, top in zip(token_ids, values, tops, strict=True)
    ]


def _with_logprobs(logits: torch.Tensor, chosen: list[Sampled | None]) -> list[Sampled | None]:
    """Add log-probabilities under the unmodified model for the rows that ask for them."""
    for index, item in enumerate(chosen):
        if item is None or item.row.request.sampling.logprobs is None:
            continue
        num_top = item.row.request.sampling.logprobs
        [chosen[index]] = score_tokens(
            logits[index : index + 1], item.row, [item.token_id], num_top
        )
    return chosen


def _top(logprobs: torch.Tensor, num_top: int) -> list[tuple[tuple[int, float], ...]]:
    if num_top == 0:
        return [()] * logprobs.shape[0]
    values, ids = logprobs.topk(min(num_top, logprobs.shape[1]), dim=-1)
    return [
        tuple(zip(row_ids, row_values, strict=True))
        for row_ids, row_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def _draw(logits: torch.Tensor, row: Row, eos_token_ids: Collection[int]) -> int:
    """One row that is not plainly greedy; `logits` is [vocabulary]."""
    sampling = row.request.sampling
    adjusted = adjust(logits.clone(), row, eos_token_ids)
    if sampling.temperature == 0:
        return int(adjusted.argmax())
    noise = uniform(row.seed, row.index, len(row.token_ids))
    return _invert(adjusted / max(sampling.temperature, _COLDEST), sampling, noise)


def adjust(logits: torch.Tensor, row: Row, eos_token_ids: Collection[int]) -> torch.Tensor:
    """Apply bans, biases and penalties in place to [vocabulary] logits (or log-probabilities)."""
    sampling = row.request.sampling
    if sampling.no_repeat_ngram_size:
        logits[list(banned_by_ngrams(row.token_ids, sampling.no_repeat_ngram_size))] = -math.inf
    if row.must_not_end:
        logits[list(eos_token_ids)] = float("-inf")
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(row.token_ids)), device=logits.device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    generated = row.token_ids[row.num_prompt :]
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        ids, counts = torch.unique(
            torch.tensor(generated, device=logits.device), return_counts=True
        )
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits


def _invert(logits: torch.Tensor, sampling: SamplingParams, noise: float) -> int:
    """The token at `noise` of the filtered cumulative distribution."""
    if sampling.top_k == 0 and sampling.top_p >= 1:
        probabilities = torch.softmax(logits, dim=-1)
        if sampling.min_p > 0:
            probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
        return _pick(probabilities, noise)
    kept, ids = _candidates(logits, sampling)
    return int(ids[_pick(kept, noise)])


def _candidates(
    logits: torch.Tensor, sampling: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (not normalised) and ids of the tokens that the filters keep, best first."""
    vocabulary = logits.shape[0]
    count = min(sampling.top_k or _CANDIDATES, vocabulary)
    values, ids = logits.topk(count)
    if sampling.top_k:
        probabilities = torch.softmax(values, dim=-1)
    else:
        probabilities = torch.exp(values - torch.logsumexp(logits, dim=-1))
        if count < vocabulary and float(probabilities.sum()) < sampling.top_p:
            values, ids = logits.sort(descending=True)
            probabilities = torch.softmax(values, dim=-1)
    before = probabilities.double().cumsum(0) - probabilities
    keep = (before < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[0])
    keep[0] = True
    return torch.where(keep, probabilities, 0.0), ids


def _pick(probabilities: torch.Tensor, noise: float) -> int:
    """Index at which the cumulative sum first exceeds `noise` of the total."""
    cumulative = probabilities.double().cumsum(0)
    index = int(torch.searchsorted(cumulative, noise * cumulative[-1], right=True))
    if index >= len(probabilities) or probabilities[index] == 0:
        return int(probabilities.nonzero()[-1])
    return index
