"""A metric as sums: what each input adds, and how the score follows from the sums.

Sums make resampling cheap: a bootstrap sample is another sum of the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """`rows` [inputs, numbers]; `combine` makes [samples] scores of [samples, numbers] sums."""

    rows: Floats
    combine: Callable[[Floats], Floats]

    @property
    def score(self) -> float:
        """The score of all inputs."""
        return float(self.combine(self.rows.sum(axis=0, keepdims=True))[0])


def mean_of(scores: Sequence[float]) -> Statistics:
    """A metric that is the mean of one score for each input."""
    return Statistics(np.array([(score, 1.0) for score in scores]), _mean)


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[:, 0] / sums[:, 1])
