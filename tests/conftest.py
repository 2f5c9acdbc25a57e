"""Fixtures that every test may use: tiny random models of four families."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import torch
from transformers import (
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from app.db.database import migrate
from app.engine.attention import backends
from app.model.frozen import FrozenModel
from app.model.load import load_model
from tests.postgres_server import PostgresServer, postgres_server
from tests.tiny import bart_config, gpt2_config, llama_like, save_model

transformers_logging.disable_progress_bar()
torch.set_num_threads(1)

# how long an example takes says more about the machine than about the code; the suite tries the
# same examples each time, and HYPOTHESIS_PROFILE=explore looks for new ones
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(scope="session", autouse=True)
def native_attention() -> Iterator[None]:
    """Native attention is compiled and checked once per run, and not for every engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "load_attention_kernel", cache(backends.load_attention_kernel))
        yield


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


@pytest.fixture(scope="session")
def tiny_bart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny BART."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bart"
    return save_model(folder, bart_config(), BartForConditionalGeneration)


@pytest.fixture(scope="session")
def tiny_bart(tiny_bart_folder: Path) -> FrozenModel:
    """The tiny BART, loaded, fp32 on the CPU."""
    return load_model(str(tiny_bart_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def trainable(tiny_gpt2_folder: Path) -> FrozenModel:
    """The tiny GPT-2 with plain layers."""
    return load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False)


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new catalog's URL, of each kind of database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/catalog.sqlite"
    else:
        url = request.getfixturevalue("_postgres").make_database()
    migrate(url)
    return url
