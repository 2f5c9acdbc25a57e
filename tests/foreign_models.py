"""Tiny random base models, and what a foreign library or formula computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from app.model.dense import dense_logits, dense_pair_logits
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.equivalence.bart_reference import carrying, plain_bart
from tests.tiny import bart_config, gpt2_config, llama_like, save_model

TOKENS = torch.tensor([[5, 9, 4, 7, 3, 8]])
SOURCE = torch.tensor([[0, 11, 6, 9, 12, 2]])
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


def save_base(family: str, folder: Path) -> Path:
    """A base model: `gpt2`, `llama` (grouped-query heads), `bart-2` or `bart-3` (layers)."""
    if family == "gpt2":
        return save_model(folder, gpt2_config(), GPT2LMHeadModel)
    if family == "llama":
        return save_model(folder, LlamaConfig(**llama_like()), LlamaForCausalLM)
    return save_model(folder, bart_of(int(family[-1])), BartForConditionalGeneration)


def bart_of(layers: int) -> BartConfig:
    """A BART whose encoder and decoder have the same shape, as PEFT demands."""
    return bart_config(encoder_layers=layers, decoder_layers=layers, **HEADS)


def plain(folder: Path) -> PreTrainedModel:
    """The model as transformers loads it."""
    has_encoder = "BartForConditionalGeneration" in (folder / "config.json").read_text()
    kind = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def frozen(folder: Path) -> FrozenModel:
    """The model as the server loads it, in float32."""
    return load_model(str(folder), device="cpu", dtype="float32", packed=False)


@torch.inference_mode()
def our_logits(model: FrozenModel, prefix: Prefix) -> torch.Tensor:
    """Logits of `TOKENS` (behind `SOURCE`) with the prefix, by the function that serving uses."""
    offset = prefix.metadata.position_offset
    if model.encoder_decoder is None:
        return dense_logits(model, TOKENS, prefix.decoder, position_offset=offset)
    mask = torch.ones_like(SOURCE, dtype=torch.bool)
    modules: Mapping[str, KeyValues] = prefix.modules
    return dense_pair_logits(model, SOURCE, mask, TOKENS, modules, position_offset=offset)


@torch.inference_mode()
def their_logits(model: torch.nn.Module, *, pair: bool) -> torch.Tensor:
    """Logits of the same tokens by a foreign library's model."""
    inputs = {"input_ids": SOURCE, "decoder_input_ids": TOKENS} if pair else {"input_ids": TOKENS}
    logits = model(**inputs).logits
    assert isinstance(logits, torch.Tensor)
    return logits


@torch.inference_mode()
def prepended_logits(folder: Path, slices: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the same pair by a BART with attention written out, tokens from position 0 on.

    `slices`: keys and values in turn by module, [layers × 2, 1, heads, positions, head size].
    """
    modules = {name: KeyValues(made[0::2, 0], made[1::2, 0]) for name, made in slices.items()}
    model = plain_bart(folder)
    with carrying(model, [Prefix(modules, PrefixMetadata(position_offset=0))]):
        output = model(input_ids=SOURCE, decoder_input_ids=TOKENS, use_cache=False)
    logits = output.logits
    assert isinstance(logits, torch.Tensor)
    return logits
