"""Gradient checkpointing: a layer's activations are computed again instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from app.model.frozen import FrozenModel
from app.training.methods.adapter import transformer_layers


@contextmanager
def checkpointed_layers(model: FrozenModel) -> Iterator[None]:
    """Within the block, each layer keeps only its input for the backward pass.

    Losses and gradients stay the same, also with dropout. transformers' own switch works only in
    train mode, where BART's layers drop activations.
    """
    layers = transformer_layers(model)
    for layer in layers:
        layer.forward = _recomputed(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, **options)

    return run
