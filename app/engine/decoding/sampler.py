"""From logits to tokens: pure functions over fp32 logits, one row independent of the others.

The order is that of transformers: bans and biases, penalties, temperature, top-k, top-p, min-p;
then the inverse of the cumulative distribution at one uniform number, so that a row's draw depends
on its own logits and on (seed, row, position) alone. Rows that choose in the same way are computed
together, no row is sorted as a whole, and nothing is read from the device before all is computed.
Logits are [rows, vocabulary], finite or -inf once they are processed; noise is fp64 [rows] in
[0, 1). Tokens that are equally probable keep the order of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch

from app.engine.decoding.logits_processors import process
from app.engine.decoding.philox import uniform
from app.engine.decoding.ranking import Ranking, best_first
from app.engine.request import SamplingParams
from app.engine.sequence import TokenSequence
from app.engine.step import Sampled

_COLDEST = 1e-6
"""The lowest temperature that is used: no quotient overflows, and only ties are left open."""

_AT_ONCE = 2**19
"""Logits of rows that are drawn together."""

_BLOCK = 128
"""Tokens of the vocabulary of which only the best one, or the sum, is looked at first."""

_FEW = 1024
"""The largest top-k whose tokens are found by their values."""

Draw = Callable[[torch.Tensor, Sequence[SamplingParams], torch.Tensor], torch.Tensor]
"""From logits, what each row asks for, and noise to int64 tokens [rows]."""

TokenScores = tuple[float, tuple[tuple[int, float], ...]]
"""A token's log-probability, then (token, log-probability) of the best ones."""


def sample(
    logits: torch.Tensor, rows: Sequence[TokenSequence], eos_token_ids: Collection[int]
) -> list[Sampled | None]:
    """Draw the next token of each row from its `logits` [rows, vocabulary], fp32.

    None for a row whose logits are not finite (their maximum is NaN or infinite).
    Log-probabilities are those of the unmodified model.
    """
    largest, tokens = best(logits)
    finite = torch.isfinite(largest)
    groups: dict[Draw | None, list[int]] = {}
    scored: list[int] = []
    for place, row in enumerate(rows):
        sampling = row.request.sampling
        if sampling.logprobs is not None:
            scored.append(place)
        draw = draw_of(sampling) if sampling.temperature > 0 else None
        if (forced := row.forced_token) is not None:
            tokens[place] = forced
        elif draw or sampling.changes_logits or (sampling.min_tokens and row.must_not_end):
            groups.setdefault(draw, []).append(place)
    for draw, places in _portions(groups, logits.shape[1]) if groups else ():
        index = torch.tensor(places, device=logits.device)
        chosen = logits.index_select(0, index)
        chosen[~finite[index]] = 0  # NaN would be no index
        group = [rows[place] for place in places]
        process(chosen, group, eos_token_ids)
        tokens[index] = _draw(chosen, group, draw)
    listed = torch.where(finite, tokens, -1).tolist()
    sampled: list[Sampled | None] = []
    for row, token in zip(rows, listed, strict=True):
        sampled.append(Sampled(row, token) if token >= 0 else None)
    if scored:
        _add_scores(sampled, scored, logits, tokens)
    return sampled


def _portions(
    groups: dict[Draw | None, list[int]], vocabulary: int
) -> Iterator[tuple[Draw | None, list[int]]]:
    """Groups of rows that are drawn in the same way (None: not at all), so small that they stay in
    a processor's cache."""
    most = max(1, _AT_ONCE // vocabulary)
    for draw, places in groups.items():
        for first in range(0, len(places), most):
            yield draw, places[first : first + most]


def _draw(logits: torch.Tensor, rows: Sequence[TokenSequence], draw: Draw | None) -> torch.Tensor:
    """Tokens [rows] from processed logits [rows, vocabulary], which change."""
    if draw is None:
        return best(logits)[1]
    # where every token is banned, none is
    logits[logits.amax(dim=-1) == -math.inf] = 0
    device = logits.device
    sampling = [row.request.sampling for row in rows]
    temperatures = torch.tensor([max(one.temperature, _COLDEST) for one in sampling])
    noise = [uniform(row.seed, row.index, len(row.token_ids)) for row in rows]
    scaled = logits.div_(temperatures.to(device)[:, None])
    return draw(scaled, sampling, torch.tensor(noise, dtype=torch.float64, device=device))


def _add_scores(
    sampled: list[Sampled | None],
    places: Sequence[int],
    logits: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    """Give the rows at `places`, which ask for log-probabilities, theirs."""
    index = torch.tensor(places, device=logits.device)
    rows = [one.row for place in places if (one := sampled[place]) is not None]
    num_top = max((row.request.sampling.logprobs or 0 for row in rows), default=0)
    scores = _scores(logits.index_select(0, index), tokens[index], num_top)
    for place, (logprob, others) in zip(places, scores, strict=True):
        if (one := sampled[place]) is not None:
            wanted = others[: one.row.request.sampling.logprobs]
            sampled[place] = Sampled(one.row, one.token_id, logprob, wanted)


# --- the most probable tokens, in two stages: several times faster on a CPU ----------------


def best(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row of [rows, columns] and its first column, [rows] each.

    A NaN counts as the largest.
    """
    rows, columns = values.shape
    whole = columns - columns % _BLOCK
    if whole == 0:
        largest, index = values.max(dim=-1)
        return largest, index
    blocks = values[:, :whole].view(rows, -1, _BLOCK)
    largest, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(rows, device=values.device), block].argmax(dim=-1)
    index = block * _BLOCK + inside
    if whole == columns:
        return largest, index
    rest, at = values[:, whole:].max(dim=-1)
    better = (rest > largest) | rest.isnan()
    return torch.where(better, rest, largest), torch.where(better, whole + at, index)


def top(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row of [rows, columns] and their columns, largest first.

    They are in the `count` blocks whose maxima are largest.
    """
    rows, columns = values.shape
    whole = columns - columns % _BLOCK
    if whole // _BLOCK <= count:
        return values.topk(count, dim=-1)
    blocks = values[:, :whole].view(rows, -1, _BLOCK)
    chosen = blocks.amax(dim=-1).topk(count, dim=-1).indices  # [rows, count]
    inside = blocks.gather(1, chosen[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    offsets = torch.arange(_BLOCK, device=values.device)
    places = (chosen[..., None] * _BLOCK + offsets).flatten(1)
    rest = torch.arange(whole, columns, device=values.device).expand(rows, -1)
    largest, index = torch.cat([inside, values[:, whole:]], dim=1).topk(count, dim=-1)
    return largest, torch.cat([places, rest], dim=1).gather(1, index)


# --- log-probabilities under the unmodified model ------------------------------------------


def _scores(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> Iterator[TokenScores]:
    """Of one of `tokens` [rows] for each row of `logits`, with its `num_top` best ones."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    if not num_top:
        yield from ((value, ()) for value in values)
        return
    tops = [tensor.tolist() for tensor in top(logprobs, min(num_top, logprobs.shape[1]))]
    for value, best_logprobs, best_tokens in zip(values, *tops, strict=True):
        yield value, tuple(zip(best_tokens, best_logprobs, strict=True))


def score_tokens(
    logits: torch.Tensor, row: TokenSequence, token_ids: Sequence[int], num_top: int
) -> list[Sampled]:
    """Log-probabilities of given tokens under `logits` [tokens, vocabulary], with alternatives."""
    scores = _scores(logits, torch.tensor(token_ids, device=logits.device), num_top)
    return [
        Sampled(row, token, value, others)
        for token, (value, others) in zip(token_ids, scores, strict=True)
    ]


# --- draws: the inverse of each row's cumulative distribution at its noise -----------------


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
