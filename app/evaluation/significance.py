"""Is one system better than another, or is it chance? Paired bootstrap resampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.errors import InvalidRequest
from app.evaluation.statistics import Statistics

SAMPLES = 1000
SEED = 12345
"""sacrebleu's own defaults."""

_BLOCK = 100


@dataclass(frozen=True)
class Difference:
    """A score minus that of the other system: `low` and `high` bound 95 % of the samples."""

    difference: float
    low: float
    high: float
    p_value: float

    def rounded(self) -> dict[str, float]:
        """The numbers by name, for reports."""
        names = ("difference", "low", "high", "p_value")
        return {name: round(getattr(self, name), 4) for name in names}


def paired_bootstrap(
    system: Statistics, other: Statistics, *, samples: int = SAMPLES, seed: int = SEED
) -> Difference:
    """The difference of two systems on the same inputs, and how sure it is.

    Inputs are drawn with replacement, the same for both (Koehn 2004). The p-value is sacrebleu's,
    from the same draws for the same seed; sacrebleu offers BLEU, TER and chrF, this any metric.
    InvalidRequest if the two were measured on different numbers of inputs.
    """
    number = len(system.rows)
    if number != len(other.rows):
        raise InvalidRequest(
            f"two systems can be compared on the same inputs only, not {number} and"
            f" {len(other.rows)}"
        )
    drawn = np.random.default_rng(seed).choice(number, size=(samples, number), replace=True)
    differences = np.concatenate(
        [_sampled(system, block) - _sampled(other, block) for block in _blocks(drawn)]
    )
    real = system.score - other.score
    shifted = np.abs(differences) - np.abs(differences).mean()
    low, high = np.percentile(differences, (2.5, 97.5))
    p_value = (int((shifted > abs(real)).sum()) + 1) / (samples + 1)
    return Difference(real, float(low), float(high), p_value)


def _blocks(drawn: np.ndarray) -> list[np.ndarray]:
    """Few samples at a time, as the rows of all would take much memory."""
    return [drawn[at : at + _BLOCK] for at in range(0, len(drawn), _BLOCK)]


def _sampled(statistics: Statistics, drawn: np.ndarray) -> np.ndarray:
    return statistics.combine(statistics.rows[drawn].sum(axis=1))
