"""The naive way: one request alone through plain transformers with a `DynamicCache`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from app.prefix.prefix import Prefix


@lru_cache(maxsize=8)
def plain_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model as transformers alone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def cache_of(model: PreTrainedModel, prefixes: Sequence[Prefix], rows: int) -> DynamicCache:
    """A cache that holds the prefixes, in order, for each of `rows` sequences."""
    cache = DynamicCache()
    for prefix in prefixes:
        for layer in range(prefix.decoder.keys.shape[0]):
            keys = prefix.decoder.keys[layer][None].to(model.dtype)
            values = prefix.decoder.values[layer][None].to(model.dtype)
            cache.update(keys.repeat_interleave(rows, 0), values.repeat_interleave(rows, 0), layer)
    return cache


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prefixes: Sequence[Prefix],
    prompts: Sequence[Sequence[int]],
    **options: Any,
) -> Any:
    """transformers' own `generate` of one static batch behind `prefixes`, with scores.

    Prompts that are shorter than the longest are padded on the left, as transformers wants it.
    """
    longest = max(map(len, prompts))
    columns = sum(prefix.length for prefix in prefixes)
    offset = sum(prefix.metadata.position_offset for prefix in prefixes)
    pads = [longest - len(prompt) for prompt in prompts]
    ids = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[1] * columns + [0] * pad + [1] * (longest - pad) for pad in pads]
    places = [[0] * pad + list(range(offset, offset + longest - pad)) for pad in pads]
    beams = options.get("num_beams", 1)
    cache = {"past_key_values": cache_of(model, prefixes, len(prompts) * beams)}
    return model.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        position_ids=torch.tensor(places),
        **(cache if columns else {}),
        do_sample=False,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )


@torch.inference_mode()
def greedy_logits(
    model: PreTrainedModel,
    prefixes: Sequence[Prefix],
    prompt_ids: Sequence[int],
    forced: Sequence[int],
) -> torch.Tensor:
    """Logits [len(forced), vocabulary] from which each of the `forced` tokens was chosen."""
    cache = cache_of(model, prefixes, 1)
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
