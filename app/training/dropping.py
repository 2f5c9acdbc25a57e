"""Dropout in a training step: which noise it has, and whether a base model has any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from app.model.frozen import FrozenModel
from app.training.recipe import Recipe

_OF_OTHER_HEADS = ("classif", "summary")
"""Dropout before heads that a language model does not have."""


@contextmanager
def dropping(model: FrozenModel, recipe: Recipe, step: int) -> Iterator[None]:
    """Within the block, what the recipe drops is dropped; the noise depends on seed and step."""
    if not recipe.model_dropout and not recipe.prefix_dropout:
        yield
        return
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed((recipe.seed << 32) + step & (1 << 63) - 1)
        if recipe.model_dropout:
            model.hf.train()
        try:
            yield
        finally:
            model.hf.eval()


def has_dropout(model: FrozenModel) -> bool:
    """Whether the base model drops anything while it is in train mode."""
    shares = {
        name: share
        for name, share in model.hf.config.to_dict().items()
        if "drop" in name and not any(other in name for other in _OF_OTHER_HEADS)
    }
    return any(isinstance(share, int | float) and share > 0 for share in shares.values())
