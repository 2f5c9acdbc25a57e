"""Tiny models whose vocabulary is exactly its tokenizer's, as CTranslate2 demands."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BartForConditionalGeneration, GPT2LMHeadModel

from tests.tiny import (
    bart_config,
    gpt2_config,
    save_model,
    train_bart_tokenizer,
    train_tokenizer,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    config = gpt2_config(vocab_size=len(train_tokenizer()))
    return save_model(tmp_path_factory.mktemp("bench") / "tiny-gpt2", config, GPT2LMHeadModel)


@pytest.fixture(scope="session")
def bart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for a tiny BART."""
    size = len(train_bart_tokenizer())
    # CTranslate2 takes one number of heads for both halves
    config = bart_config(vocab_size=size, encoder_attention_heads=4)
    folder = tmp_path_factory.mktemp("bench") / "tiny-bart"
    return save_model(folder, config, BartForConditionalGeneration)
