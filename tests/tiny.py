"""Tiny random models, a byte-level tokenizer and prefixes: makers, for tests to import."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 128
VOCABULARY = 320


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens, `<|endoftext|>` first among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = ["the quick brown fox jumps over the lazy dog and the cat sat on the mat"] * 4
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
    )


def save_model(folder: Path, config: PreTrainedConfig, model_class: type) -> Path:
    """A random model of `config` with the tiny tokenizer, saved the Hugging Face way."""
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    return folder


def gpt2_config(**changes: object) -> GPT2Config:
    """A GPT-2 of 2 layers whose random weights are large enough for distinct logits."""
    facts = {
        "vocab_size": VOCABULARY,
        "n_positions": CONTEXT,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPT2Config(**{**facts, **changes})


def llama_like(**changes: object) -> dict[str, object]:
    """Config fields of a tiny model with rotary positions and grouped-query heads."""
    facts: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
    }
    return {**facts, **changes}


def random_prefix(
    model: FrozenModel, length: int, *, seed: int = 0, position_offset: int | None = None
) -> Prefix:
    """A prefix of random keys and values that fits `model`; shifts by its length if not said."""
    shape = model.spec.decoder
    generator = torch.Generator().manual_seed(seed)
    size = (shape.layers, shape.kv_heads, length, shape.head_dim)
    keys, values = (torch.randn(size, generator=generator) for _ in range(2))
    offset = length if position_offset is None else position_offset
    metadata = PrefixMetadata(
        position_offset=offset,
        base_model=model.spec.model_id,
        base_fingerprint=model.spec.fingerprint,
    )
    return Prefix({"decoder": KeyValues(keys, values)}, metadata)
