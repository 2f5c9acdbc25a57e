"""Text infilling (Lewis et al. 2019, BART): each hidden span of token ids becomes one mask."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

MASKED_SHARE = 0.3
"""Share of a text's tokens that is hidden."""
MEAN_SPAN = 3.0


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
