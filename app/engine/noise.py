"""Counter-based noise: one uniform number per (seed, row, position), whatever the batch."""

from __future__ import annotations

import numpy as np


def uniform(seed: int, row: int, position: int) -> float:
    """A number in [0, 1) from Philox-4x64 (Salmon et al. 2011) keyed by `seed` and `row`."""
    generator = np.random.Philox(key=[seed & (2**64 - 1), row], counter=[position, 0, 0, 0])
    return float(int(generator.random_raw()) >> 11) * 2.0**-53
