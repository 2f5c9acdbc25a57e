"""What the model computes by plain transformers, recorded before anything is prepared for serving.

The start-up probe compares the ragged engine with these runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from app.model.families import is_encoder_decoder

_LENGTHS = (10, 13)


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """A token sequence and the logits [tokens, vocabulary], fp32, that plain transformers gives.

    With an encoder the tokens are the decoder's, and the encoder read `source_ids`.
    """

    token_ids: tuple[int, ...]
    logits: torch.Tensor
    source_ids: tuple[int, ...] = ()


@torch.inference_mode()
def reference_runs(module: PreTrainedModel, vocab_size: int) -> tuple[ReferenceRun, ...]:
    """Run a few fixed sequences, each alone, through the module as transformers loaded it."""
    device = next(module.parameters()).device
    runs = []
    has_encoder = is_encoder_decoder(module.config)
    for length in _LENGTHS:
        token_ids, source_ids = _ids(length, vocab_size), _ids(2 * length + 1, vocab_size)
        read = source_ids if has_encoder else token_ids
        decoder = {"decoder_input_ids": torch.tensor([token_ids], device=device)}
        # an explicit mask keeps a pad token among the ids an ordinary token
        output = module(
            input_ids=torch.tensor([read], device=device),
            attention_mask=torch.ones(1, len(read), dtype=torch.long, device=device),
            use_cache=False,
            **(decoder if has_encoder else {}),
        )
        logits = output.logits[0].float()
        runs.append(ReferenceRun(token_ids, logits, source_ids if has_encoder else ()))
    return tuple(runs)


def _ids(length: int, vocab_size: int) -> tuple[int, ...]:
    return tuple((7919 * index + 13 * length) % vocab_size for index in range(length))
