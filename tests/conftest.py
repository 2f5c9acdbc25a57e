"""Tiny random models of three families, a byte-level tokenizer and prefixes for them."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 128
VOCABULARY = 320

transformers_logging.disable_progress_bar()
torch.set_num_threads(1)


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
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT
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


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved tiny models by family."""
    root = tmp_path_factory.mktemp("models")
    return {
        "gpt2": save_model(root / "tiny-gpt2", gpt2_config(), GPT2LMHeadModel),
        "llama": save_model(root / "tiny-llama", LlamaConfig(**llama_like()), LlamaForCausalLM),
        "qwen2": save_model(root / "tiny-qwen2", Qwen2Config(**llama_like()), Qwen2ForCausalLM),
    }


@pytest.fixture(scope="session")
def tiny_models(model_folders: dict[str, Path]) -> dict[str, FrozenModel]:
    """Loaded tiny models by family, fp32 on the CPU."""
    return {
        family: load_model(str(folder), device="cpu", dtype="float32")
        for family, folder in model_folders.items()
    }


@pytest.fixture(scope="session")
def tiny_gpt2_folder(model_folders: dict[str, Path]) -> Path:
    """The folder of the tiny GPT-2."""
    return model_folders["gpt2"]


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_models: dict[str, FrozenModel]) -> FrozenModel:
    """The tiny GPT-2, loaded."""
    return tiny_models["gpt2"]


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


@pytest.fixture(scope="session")
def make_prefix() -> Callable[..., Prefix]:
    """`random_prefix`, for tests that cannot import from here."""
    return random_prefix
