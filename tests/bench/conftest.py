"""A tiny GPT-2 whose vocabulary is exactly its tokenizer's, as CTranslate2 demands."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2LMHeadModel

from tests.tiny import gpt2_config, save_model, train_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    config = gpt2_config(vocab_size=len(train_tokenizer()))
    return save_model(tmp_path_factory.mktemp("bench") / "tiny-gpt2", config, GPT2LMHeadModel)
