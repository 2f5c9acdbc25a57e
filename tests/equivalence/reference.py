"""The naive way: one request alone through plain transformers with a `DynamicCache`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from app.prefix.prefix import Prefix


@lru_cache(maxsize=8)
def plain_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model as transformers alone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.inference_mode()
def greedy_logits(
    model: PreTrainedModel,
    prefixes: Sequence[Prefix],
    prompt_ids: Sequence[int],
    forced: Sequence[int],
) -> torch.Tensor:
    """Logits [len(forced), vocabulary] from which each of the `forced` tokens was chosen."""
    cache = DynamicCache()
    for prefix in prefixes:
        for layer in range(prefix.decoder.keys.shape[0]):
            keys = prefix.decoder.keys[layer][None].to(model.dtype)
            values = prefix.decoder.values[layer][None].to(model.dtype)
            cache.update(keys, values, layer)
    position = sum(prefix.metadata.position_offset for prefix in prefixes)
    pending, logits = list(prompt_ids), []
    for token in forced:
        positions = torch.arange(position, position + len(pending))[None]
        output = model(
            input_ids=torch.tensor([pending]),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        position += len(pending)
        logits.append(output.logits[0, -1].float())
        pending = [token]
    return torch.stack(logits)
