"""Counter-based noise: one uniform number per (seed, row, position), whatever the batch."""

from __future__ import annotations

import numpy as np


def uniform(seed: int, row: int, position: int) -> float:
    """A number in [0, 1) from Philox-4x64 (Salmon et al. 2011) keyed by `seed` and `row`."""
    # a plain list with a number beyond 63 bits would become floating point
    key = np.array([seed & (2**64 - 1), row], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=[position, 0, 0, 0])
    return float(int(generator.random_raw()) >> 11) * 2.0**-53
