"""From logits to tokens: pure functions over fp32 logits, one row independent of the others.

The order is that of transformers: bans and biases, penalties, temperature, top-k, top-p, min-p;
then the inverse of the cumulative distribution at one uniform number, so that a row's draw depends
on its own logits and on (seed, row, position) alone. Rows that choose in the same way are computed
together, and nothing is read from the device before all is computed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch

from app.engine.decoding.drawing import Draw, draw_of
from app.engine.decoding.logits_processors import is_processed, process
from app.engine.decoding.logprobs import Scores, TokenScores
from app.engine.decoding.philox import uniform
from app.engine.decoding.reductions import best
from app.engine.sequence import TokenSequence
from app.engine.step import Sampled

_COLDEST = 1e-6
"""Temperatures below are taken for it: no quotient overflows, and nothing but ties is left open."""

_AT_ONCE = 2**19
"""Logits of rows that are drawn together."""


def sample(
    logits: torch.Tensor, rows: Sequence[TokenSequence], eos_token_ids: Collection[int]
) -> list[Sampled | None]:
    """Draw the next token of each row from its `logits` [rows, vocabulary], fp32.

    None stands for a row whose logits are not finite (their maximum is NaN or infinite).
    Log-probabilities are those of the unmodified model.
    """
    largest, tokens = best(logits)
    finite = torch.isfinite(largest)
    for draw, places in _groups(rows, logits.shape[1]):
        index = torch.tensor(places, device=logits.device)
        chosen = logits.index_select(0, index)
        chosen[~finite[index]] = 0  # NaN would be no index
        group = [rows[place] for place in places]
        process(chosen, group, eos_token_ids)
        tokens[index] = _draw(chosen, group, draw)
    for place, row in enumerate(rows):
        if row.forced_token is not None:
            tokens[place] = row.forced_token
    scored, scores = _score(logits, tokens, rows)
    listed = torch.where(finite, tokens, -1).tolist()
    sampled = [
        Sampled(row, token) if token >= 0 else None for row, token in zip(rows, listed, strict=True)
    ]
    for place, (logprob, others) in zip(scored, scores, strict=True):
        row, num_top = rows[place], rows[place].request.sampling.logprobs
        if sampled[place] is not None:
            sampled[place] = Sampled(row, listed[place], logprob, others[:num_top])
    return sampled


def _groups(
    rows: Sequence[TokenSequence], vocabulary: int
) -> Iterator[tuple[Draw | None, list[int]]]:
    """Rows that may not take the most probable token as it is, by the way in which they are drawn.

    None: not at all. A group is so small that it stays in a processor's cache.
    """
    groups: dict[Draw | None, list[int]] = {}
    for place, row in enumerate(rows):
        sampling = row.request.sampling
        draw = draw_of(sampling) if sampling.temperature > 0 else None
        if row.forced_token is None and (draw is not None or is_processed(row)):
            groups.setdefault(draw, []).append(place)
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


def _score(
    logits: torch.Tensor, tokens: torch.Tensor, rows: Sequence[TokenSequence]
) -> tuple[Sequence[int], Iterable[TokenScores]]:
    """The rows that ask for log-probabilities, and those."""
    asked = [row.request.sampling.logprobs for row in rows]
    places = [place for place, num_top in enumerate(asked) if num_top is not None]
    if not places:
        return (), ()
    index = torch.tensor(places, device=logits.device)
    num_top = max(num_top or 0 for num_top in asked)
    return places, Scores(logits.index_select(0, index), tokens[index], num_top)
