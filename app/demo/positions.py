"""The initial values of learned positions."""

from __future__ import annotations

import torch

_LONGEST_WAVE = 512.0


def waves(positions: int, width: int) -> torch.Tensor:
    """Sines and cosines of [positions, width] as the start of learned positions.

    Copying needs to find the previous token; a short run should not have to learn that.
    """
    rates = _LONGEST_WAVE ** -torch.linspace(0, 1, width // 2)
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1) * (width / 2) ** -0.5
