"""What learned positions start from. Knows nothing about models."""

from __future__ import annotations

import torch

_LONGEST_WAVE = 512.0


def waves(positions: int, width: int) -> torch.Tensor:
    """Sines and cosines [positions, width] to start the learned positions from.

    Copying needs to know which token stands before; a short run should not have to learn that.
    """
    rates = _LONGEST_WAVE ** -torch.linspace(0, 1, width // 2)
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1) * (width / 2) ** -0.5
