"""What the model computes by plain transformers, recorded before anything is prepared for serving.

The start-up probe compares the ragged engine with these runs. Knows nothing about the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_LENGTHS = (10, 13)


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """A token sequence and the logits [tokens, vocabulary], fp32, that plain transformers gives."""

    token_ids: tuple[int, ...]
    logits: torch.Tensor


@torch.inference_mode()
def reference_runs(module: torch.nn.Module, vocab_size: int) -> tuple[ReferenceRun, ...]:
    """Run a few fixed sequences, each alone, through the module as transformers loaded it."""
    device = next(module.parameters()).device
    runs = []
    for length in _LENGTHS:
        token_ids = tuple((7919 * index + 13 * length) % vocab_size for index in range(length))
        # an explicit mask keeps a pad token among the ids an ordinary token
        output = module(
            input_ids=torch.tensor([token_ids], device=device),
            attention_mask=torch.ones(1, length, dtype=torch.long, device=device),
            use_cache=False,
        )
        runs.append(ReferenceRun(token_ids, output.logits[0].float()))
    return tuple(runs)
