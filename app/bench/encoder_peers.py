"""The peers of an encoder-decoder load: `model.generate` task by task, and CTranslate2.

Today's transformers has no prefixes in three attentions. A user would write an attention function
that puts one task's keys and values before the model's own, and generate task after task.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from app.bench.load import Load, random_modules
from app.bench.measure import Round
from app.bench.peers import DTYPES, Peer, batches, check_made, converted, generate, task_batches
from app.errors import InvalidRequest
from app.model.frozen import role_of
from app.model.load import module_shapes
from app.prefix.prefix import KeyValues

_ATTENTION = "bench-prefix-by-task"


class _TaskAttention:
    """The attention function. All rows use `modules`, the current task's prefixes."""

    def __init__(self) -> None:
        self.modules: Mapping[str, KeyValues] = {}

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        prefix = self.modules.get(role_of(module))
        is_causal = attention_mask is None and query.shape[2] > 1 and role_of(module) == "decoder"
        if prefix is not None:
            rows, layer = key.shape[0], int(module.layer_idx)  # type: ignore[arg-type]
            key = torch.cat([prefix.keys[layer].expand(rows, -1, -1, -1), key], dim=2)
            value = torch.cat([prefix.values[layer].expand(rows, -1, -1, -1), value], dim=2)
            if attention_mask is not None:
                attention_mask = pad(attention_mask, (prefix.length, 0), value=True)
            elif is_causal:
                shape = (query.shape[2], key.shape[2])
                attention_mask = torch.ones(shape, dtype=torch.bool).tril(prefix.length)
                is_causal = False
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, is_causal=is_causal, scale=scaling
        )
        return output.transpose(1, 2).contiguous(), None


def hf_generate_by_task(folder: str, load: Load, dtype: str, batch: int) -> Round:
    """`model.generate` with one task's prefix in all three modules, task after task."""
    attention = _TaskAttention()
    AttentionInterface.register(_ATTENTION, attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    model.set_attn_implementation(_ATTENTION)
    _never_end(model)
    shapes = module_shapes(model.config)
    prefixes = [
        {
            role: KeyValues(module.keys.to(DTYPES[dtype]), module.values.to(DTYPES[dtype]))
            for role, module in random_modules(shapes, length, seed).items()
        }
        for seed, length in enumerate(load.prefix_lengths)
    ]

    def run() -> None:
        for task, items in task_batches(load, batch):
            attention.modules = prefixes[task]
            generate(model, items, has_encoder=True, num_beams=load.num_beams)

    return run


def peft(_folder: str, _load: Load, _dtype: str, _batch: int) -> Round:
    """PEFT has no prefixes for the encoder or for cross-attention."""
    raise InvalidRequest("PEFT puts prefixes only into BART's decoder, so it is not a peer here")


def _never_end(model: PreTrainedModel) -> None:
    """Turn off everything that ends a row early."""
    config = model.generation_config
    config.eos_token_id = config.forced_eos_token_id = config.forced_bos_token_id = None
    config.pad_token_id = 1


def _ctranslate2(folder: str, load: Load, _dtype: str, batch: int, *, kind: str) -> Round:
    """CTranslate2 on static batches, without prefixes; `kind` is the dtype of its products."""
    with tempfile.TemporaryDirectory() as scratch:
        _with_old_fields(folder, Path(scratch))
        translator, names = converted("Translator", scratch, kind)

    def run() -> None:
        for items in batches(load, batch):
            new = max(item.num_new for item in items)
            results = translator.translate_batch(
                [[names[token] for token in item.prompt_ids] for item in items],
                beam_size=load.num_beams,
                min_decoding_length=new,
                max_decoding_length=new,
            )
            check_made(min(len(result.hypotheses[0]) for result in results), new)

    return run


ENCODER_PEERS: dict[str, Peer] = {
    "hf-generate": hf_generate_by_task,
    "peft": peft,
    "ctranslate2-float32": partial(_ctranslate2, kind="float32"),
    "ctranslate2-int8": partial(_ctranslate2, kind="int8"),
}
"""Peers of models with an encoder, under the names of `app.bench.peers.PEERS`."""


def _with_old_fields(folder: str, copy: Path) -> None:
    """Copy the model with the config fields that CTranslate2 reads and transformers has dropped."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model.config.normalize_before = False
    model.save_pretrained(copy)
    AutoTokenizer.from_pretrained(folder).save_pretrained(copy)
