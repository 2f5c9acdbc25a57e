"""Training batches from exchanges; rows of similar length keep padding small.

A step's batches depend only on its number, so a resumed run continues with the same batches.
Texts are hidden in spans by infilling (Lewis et al. 2019, BART).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from app.demo.exchanges import Exchange, Exchanges
from app.demo.packing import IGNORED
from app.demo.tokenizer import MASK

PRACTICE_STEPS = 500
"""Number of first steps that mostly copy facts, which the model must learn first."""
_EXCHANGES_A_STEP = 100_000
MASKED_SHARE = 0.3
"""Share of a text's tokens that is hidden."""
MEAN_SPAN = 3.0

_Encoded = tuple[list[int], list[int]]
"""Token ids of source and target, including `<s>` and `</s>`."""


@dataclass(frozen=True)
class PairBatch:
    """Rows of similar length; `source` and `attended` are [rows, source], others [rows, target].

    `decoder_input` is `labels` shifted right behind `</s>`. `labels` are `IGNORED` at padding.
    """

    source: torch.Tensor
    attended: torch.Tensor
    decoder_input: torch.Tensor
    labels: torch.Tensor


class Pairer:
    """Cuts exchanges into steps of about `tokens` tokens, and each step into `parts` batches."""

    def __init__(
        self, exchanges: Exchanges, tokenizer: Tokenizer, *, tokens: int, parts: int, limit: int
    ) -> None:
        self._exchanges = exchanges
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._parts = parts
        self._limit = limit
        vocabulary = tokenizer.get_vocab()
        self._mask, self._pad = vocabulary[MASK], vocabulary["<pad>"]
        self._start, self._end = vocabulary["<s>"], vocabulary["</s>"]

    def step(self, number: int) -> list[PairBatch]:
        """The batches of step `number`, which together hold its tokens."""
        rng = random.Random(number)
        practice = 0 <= number < PRACTICE_STEPS
        pairs: list[_Encoded] = []
        room = self._tokens
        seed = number * _EXCHANGES_A_STEP
        while True:
            pair = self.encode(self._exchanges.exchange(seed, practice=practice), rng)
            room -= len(pair[0]) + len(pair[1])
            if room < 0 and pairs:
                break
            pairs.append(pair)
            seed += 1
        pairs.sort(key=lambda pair: (len(pair[0]) + len(pair[1]), len(pair[0])))
        return [self._collate(part) for part in _split(pairs, self._parts)]

    def encode(self, exchange: Exchange, rng: random.Random) -> _Encoded:
        """Token ids of both sides, cut to the limit; infilling hides spans of the source."""
        room = self._limit - 2
        source, target = (
            self._tokenizer.encode(text, add_special_tokens=False).ids[:room]
            for text in (exchange.source, exchange.target)
        )
        if exchange.restore:
            source = infill(source, self._mask, rng)[:room]
        start, end = self._start, self._end
        return [start, *source, end], [start, *target, end]

    def _collate(self, pairs: Sequence[_Encoded]) -> PairBatch:
        source = torch.full((len(pairs), max(len(s) for s, _ in pairs)), self._pad)
        labels = torch.full((len(pairs), max(len(t) for _, t in pairs)), IGNORED)
        decoder_input = torch.full_like(labels, self._pad)
        for row, (s, t) in enumerate(pairs):
            source[row, : len(s)] = torch.tensor(s)
            labels[row, : len(t)] = torch.tensor(t)
            decoder_input[row, : len(t)] = torch.tensor([self._end, *t[:-1]])
        return PairBatch(source, source.ne(self._pad).long(), decoder_input, labels)


def _split(pairs: Sequence[_Encoded], parts: int) -> list[Sequence[_Encoded]]:
    """`pairs` in order, cut into at most `parts` runs with nearly equal numbers of tokens."""
    total = sum(len(s) + len(t) for s, t in pairs)
    runs: list[list[_Encoded]] = [[] for _ in range(parts)]
    before = 0
    for s, t in pairs:
        runs[before * parts // total].append((s, t))
        before += len(s) + len(t)
    return [run for run in runs if run]


def infill(
    ids: Sequence[int],
    mask: int,
    rng: random.Random,
    *,
    share: float = MASKED_SHARE,
    mean: float = MEAN_SPAN,
) -> list[int]:
    """`ids` with spans replaced by one `mask` each; the spans hold `share` of all tokens.

    Span lengths are Poisson(`mean`); a span of length 0 inserts a mask. Two masks are always at
    least one token apart.
    """
    lengths = _span_lengths(round(share * len(ids)), rng, mean)
    kept = len(ids) - sum(lengths)
    lengths = lengths[: kept + 1]
    gaps = sorted(rng.sample(range(kept + 1), len(lengths)))
    corrupted: list[int] = []
    done = 0
    taken = 0
    for gap, length in zip(gaps, lengths, strict=True):
        start = gap + taken
        corrupted.extend(ids[done:start])
        corrupted.append(mask)
        done = start + length
        taken += length
    corrupted.extend(ids[done:])
    return corrupted


def _span_lengths(total: int, rng: random.Random, mean: float) -> list[int]:
    """Random span lengths with the sum `total`; the last one is cut to fit."""
    lengths: list[int] = []
    while total > 0:
        length = min(total, _poisson(mean, rng))
        lengths.append(length)
        total -= length
    rng.shuffle(lengths)
    return lengths


def _poisson(mean: float, rng: random.Random) -> int:
    """A Poisson number by Knuth's method: how many uniform factors stay above e^-mean."""
    least = math.exp(-mean)
    count, product = 0, rng.random()
    while product > least:
        count += 1
        product *= rng.random()
    return count
