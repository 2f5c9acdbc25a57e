"""The naive way with an encoder: one request alone through plain transformers.

An attention function of its own prepends what hangs on each attention module to its keys and
values, in the encoder, the decoder and across, under masks that are written out. Nothing of the
engine's or the training's attention is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, BartForConditionalGeneration

from app.prefix.prefix import Prefix

NAME = "prefixes_prepended"


def _prepended(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention written out. The mask that transformers makes is none: nothing is padded here."""
    assert attention_mask is None
    keys, values = module.prefix_kv  # [heads, length, head_dim] each
    rows, length = key.shape[0], keys.shape[1]
    key = torch.cat([keys.expand(rows, -1, -1, -1), key], dim=2)
    value = torch.cat([values.expand(rows, -1, -1, -1), value], dim=2)
    tokens, columns = query.shape[2], key.shape[2]
    visible = torch.ones(tokens, columns, dtype=torch.bool)
    if module.is_causal:
        before = columns - tokens - length  # tokens of earlier steps
        visible = visible.tril(diagonal=length + before)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.softmax(scores.float(), dim=-1).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


@lru_cache(maxsize=8)
def plain_bart(folder: Path, dtype: torch.dtype = torch.float32) -> BartForConditionalGeneration:
    """The model as transformers alone loads it, with the attention of this module."""
    AttentionInterface.register(NAME, _prepended)
    model = BartForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    model.set_attn_implementation(NAME)
    return model


@contextmanager
def carrying(model: BartForConditionalGeneration, prefixes: Sequence[Prefix]) -> Iterator[None]:
    """Hang the prefixes' columns, in order, on the attention modules they belong to."""
    encoder, decoder = model.get_encoder(), model.get_decoder()
    modules = {
        "encoder": [layer.self_attn for layer in encoder.layers],
        "decoder": [layer.self_attn for layer in decoder.layers],
        "cross": [layer.encoder_attn for layer in decoder.layers],
    }
    for role, attentions in modules.items():
        parts = [prefix.modules[role] for prefix in prefixes if role in prefix.modules]
        for layer, attention in enumerate(attentions):
            nothing = torch.empty(attention.num_heads, 0, attention.head_dim, dtype=model.dtype)
            attention.prefix_kv = tuple(
                torch.cat(
                    [nothing, *(getattr(part, name)[layer].to(model.dtype) for part in parts)],
                    dim=1,
                )
                for name in ("keys", "values")
            )
    places, own = decoder.embed_positions, decoder.embed_positions.offset
    places.offset = own + sum(prefix.metadata.position_offset for prefix in prefixes)
    try:
        yield
    finally:
        places.offset = own


@torch.inference_mode()
def decoder_logits(
    model: BartForConditionalGeneration,
    prefixes: Sequence[Prefix],
    source_ids: Sequence[int],
    forced: Sequence[int],
) -> torch.Tensor:
    """Logits [len(forced), vocabulary], fp32, from which each `forced` token was chosen."""
    started = [model.generation_config.decoder_start_token_id, *forced[:-1]]
    with carrying(model, prefixes):
        output = model(
            input_ids=torch.tensor([list(source_ids)]),
            decoder_input_ids=torch.tensor([started]),
            use_cache=False,
        )
    return output.logits[0].float()


@torch.inference_mode()
def encoded(
    model: BartForConditionalGeneration, prefixes: Sequence[Prefix], source_ids: Sequence[int]
) -> torch.Tensor:
    """What the decoder attends to of a source: [2, layers, heads, tokens, head_dim]."""
    with carrying(model, prefixes):
        hidden = model.get_encoder()(input_ids=torch.tensor([list(source_ids)])).last_hidden_state
    found = []
    for layer in model.get_decoder().layers:
        attention = layer.encoder_attn
        shape = (len(source_ids), attention.num_heads, attention.head_dim)
        pair = (attention.k_proj(hidden), attention.v_proj(hidden))
        found.append(torch.stack([part.view(shape).transpose(0, 1) for part in pair]))
    return torch.stack(found, dim=1)


@torch.inference_mode()
def generate(
    model: BartForConditionalGeneration,
    prefixes: Sequence[Prefix],
    source_ids: Sequence[int],
    **options: Any,
) -> Any:
    """transformers' own `generate` of one source, with scores."""
    ids = torch.tensor([list(source_ids)])
    with carrying(model, prefixes):
        return model.generate(
            ids,
            attention_mask=None,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
