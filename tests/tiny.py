"""Tiny random models, a byte-level tokenizer and prefixes: makers, for tests to import."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata

END_OF_TEXT = "<|endoftext|>"
BART_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""The ids 0 to 4 of `train_bart_tokenizer`."""

CONTEXT = 128
VOCABULARY = 320


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens, `<|endoftext|>` first among them."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_train([END_OF_TEXT]),
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
    )


def train_bart_tokenizer() -> PreTrainedTokenizerFast:
    """The same with BART's special tokens; a text becomes `<s> … </s>`."""
    tokenizer = _train(list(BART_SPECIALS))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def _train(special_tokens: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text = ["the quick brown fox jumps over the lazy dog and the cat sat on the mat"] * 4
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def save_model(folder: Path, config: PreTrainedConfig, model_class: type) -> Path:
    """A random model of `config` with the tiny tokenizer, saved the Hugging Face way."""
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    tokenizer = train_bart_tokenizer() if config.is_encoder_decoder else train_tokenizer()
    tokenizer.save_pretrained(folder)
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


def bart_config(**changes: object) -> BartConfig:
    """A BART of 3 encoder and 2 decoder layers, which differ in their heads too."""
    facts = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "d_model": 32,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "init_std": 0.3,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }
    return BartConfig(**{**facts, **changes})


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
    model: FrozenModel,
    length: int,
    *,
    seed: int = 0,
    position_offset: int | None = None,
    encoder: int = 0,
    cross: int = 0,
) -> Prefix:
    """A prefix of random keys and values that fits `model`; shifts by its length if not said.

    `length` positions in the decoder, and as many as are said in the encoder and across.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, count in (("decoder", length), ("encoder", encoder), ("cross", cross)):
        if count:
            shape = model.spec.modules[name]
            size = (shape.layers, shape.kv_heads, count, shape.head_dim)
            keys, values = (torch.randn(size, generator=generator) for _ in range(2))
            modules[name] = KeyValues(keys, values)
    offset = length if position_offset is None else position_offset
    metadata = PrefixMetadata(
        position_offset=offset,
        base_model=model.spec.model_id,
        base_fingerprint=model.spec.fingerprint,
    )
    return Prefix(modules, metadata)
