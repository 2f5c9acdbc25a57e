"""Random weights in the shapes of well-known models, for speed alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

_BART_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def model_folder(model: str, scratch: Path) -> str:
    """The folder or hub id to load; for a name in `SHAPES`, a folder in `scratch`."""
    if model not in SHAPES:
        return model
    folder = scratch / model
    if not folder.exists():
        torch.manual_seed(0)
        module, tokenizer = SHAPES[model]()
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def _gpt2() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    end, config = "<|endoftext|>", GPT2Config()
    specials = {end: int(config.eos_token_id)}
    tokenizer = _byte_tokenizer(int(config.vocab_size), specials)
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.unk_token = end
    return GPT2LMHeadModel(config), tokenizer


def _bart(width: int, layers: int, heads: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    config = BartConfig(
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        forced_eos_token_id=None,
    )
    specials = {token: index for index, token in enumerate(_BART_SPECIALS)}
    tokenizer = _byte_tokenizer(int(config.vocab_size), specials)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    tokenizer.pad_token, tokenizer.unk_token = "<pad>", "<unk>"
    return BartForConditionalGeneration(config), tokenizer


SHAPES: Mapping[str, Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerFast]]] = {
    "gpt2-shape": _gpt2,
    "bart-base-shape": lambda: _bart(768, 6, 12),
    "bart-large-shape": lambda: _bart(1024, 12, 16),
}
"""Names for --model: GPT-2 with 124, BART with 139 and with 406 million parameters."""


def _byte_tokenizer(size: int, specials: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for every byte and an invented word for every other id."""
    taken = set(specials.values())
    free = iter(index for index in range(size) if index not in taken)
    vocabulary = {
        character: next(free) for character in sorted(pre_tokenizers.ByteLevel.alphabet())
    }
    vocabulary |= {f"Ġword{index}": index for index in free}
    vocabulary |= specials
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
