"""The tokens of each row in descending order of logits, found without sorting the row."""

from __future__ import annotations

import math

import torch

_BINS = 2048
"""Parts of equal width that a row's logits fall into, and one more for the rest."""

_SPAN = 32.0
"""Logits that lie further below the best one are the rest, which is never drawn: not once in a
thousand million times it would be."""

_UNIT = 2.0**44
"""Probabilities become whole numbers of such parts, whose sums are exact in any order."""


class Ranking:
    """Where masses are reached in the order of [rows, vocabulary] finite or infinite logits.

    Tokens are told apart by bins of equal width; only those of one bin are sorted. Masses are
    probabilities as whole numbers; they, targets and answers are fp64 [rows, 1].
    """

    def __init__(self, logits: torch.Tensor, probabilities: torch.Tensor) -> None:
        self._logits = logits
        self._mass = (probabilities * _UNIT).floor_()
        best, worst = logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True)
        span = (best - worst).clamp_(min=1e-30, max=_SPAN)
        # just short of the whole, so that the worst token does not fall among the rest
        depth = (best - logits).mul_((1 - 1e-6) * _BINS / span).clamp_(max=_BINS)
        self._bins = depth.long()
        self._masses = self._sum_up(self._mass.double())
        self.total = self._masses[:, -1:]

    def at_mass(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The token at which the mass first exceeds `target`, and the mass up to it."""
        chosen = _index(self._masses, target)
        tokens, masses = self._inside(chosen)
        at = _index(masses, target)
        return tokens.gather(1, at), masses.gather(1, at)

    def mass_to_rank(self, rank: torch.Tensor) -> torch.Tensor:
        """The mass up to the token at `rank` [rows, 1], counted from 0 for the best."""
        one = torch.ones(1, 1, dtype=torch.float64, device=rank.device)
        counts = self._sum_up(one.expand(self._mass.shape))
        chosen = _index(counts, rank)
        masses = self._inside(chosen)[1]
        at = (rank - _before(counts, chosen)).long().clamp_(max=masses.shape[1] - 1)
        return torch.where(rank < counts[:, -1:], masses.gather(1, at), self.total)

    def mass_of(self, chosen: torch.Tensor) -> torch.Tensor:
        """The mass of the tokens that are `chosen` [rows, vocabulary]."""
        return self._mass.masked_fill(~chosen, 0).double().sum(dim=-1, keepdim=True)

    def _sum_up(self, weights: torch.Tensor) -> torch.Tensor:
        """Sums up to the end of every bin, [rows, bins]; the rest is left out."""
        sums = weights.new_zeros(len(weights), _BINS + 1).scatter_add_(1, self._bins, weights)
        return sums[:, :_BINS].cumsum(dim=-1)

    def _inside(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of a bin of each row, best first, and the masses up to them: [rows, most]."""
        tokens, values = best_first(self._logits, self._bins == chosen)
        mass = self._mass.gather(1, tokens).double().masked_fill_(values == -math.inf, 0)
        return tokens, _before(self._masses, chosen) + mass.cumsum(dim=-1)


def best_first(logits: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The `chosen` tokens of each row, and their logits, in descending order: [rows, most].

    Equal ones keep the order of the vocabulary; rows with fewer end in logits of -inf.
    """
    row, token = chosen.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(logits))
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    shape = (len(logits), max(1, int(counts.max())))
    values = logits.new_full(shape, -math.inf)
    values[row, place] = logits[row, token]
    tokens = token.new_zeros(shape)
    tokens[row, place] = token
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return tokens.gather(1, order), values


def _before(sums: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The sum before a column."""
    return torch.where(at > 0, sums.gather(1, (at - 1).clamp_(min=0)), 0.0)


def _index(sums: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first column whose sum exceeds `target`, at most the last one."""
    return torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)
