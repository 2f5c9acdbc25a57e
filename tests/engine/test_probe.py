"""The start-up probe: served families pass; models that would silently differ do not start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    StableLmForCausalLM,
)

from app.engine.attention.backends import FUSED, PRODUCTS, Attention, choose_attention
from app.engine.probe import probe
from app.errors import UnsupportedModel
from app.model import load as load_module
from app.model.frozen import FrozenModel
from app.model.load import load_model
from tests.model.architectures import SERVED, STABLELM
from tests.tiny import CONTEXT, VOCABULARY, llama_like, save_model

TINY = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
SILENT: dict[str, tuple[PreTrainedConfig, type]] = {
    "gpt-j": (
        GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=CONTEXT, **TINY),
        GPTJForCausalLM,
    ),
    "gpt-neo": (
        GPTNeoConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global"], 2]],
            max_position_embeddings=CONTEXT,
            **TINY,
        ),
        GPTNeoForCausalLM,
    ),
    "falcon": (
        FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **TINY),
        FalconForCausalLM,
    ),
    "a window shorter than the probe": (
        MistralConfig(**llama_like(sliding_window=4)),
        MistralForCausalLM,
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SERVED)
def test_a_served_family_passes(name: str, dtype: str, tmp_path: Path) -> None:
    config, model_class = SERVED[name]
    folder = save_model(tmp_path, config, model_class)
    worst = probe(load_model(str(folder), device="cpu", dtype=dtype))
    assert worst <= (1e-4 if dtype == "float32" else 0.1)


def test_a_family_that_drops_the_plan_does_not_start(tmp_path: Path) -> None:
    folder = save_model(tmp_path, STABLELM, StableLmForCausalLM)
    model = load_model(str(folder), device="cpu", dtype="float32")
    with pytest.raises(UnsupportedModel, match="did not pass the plan on"):
        probe(model)


@pytest.mark.parametrize("name", SILENT)
def test_what_no_config_check_recognises_is_caught_by_running_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model_class = SILENT[name]
    folder = save_model(tmp_path, config, model_class)
    monkeypatch.setattr(load_module, "check_supported", lambda _: None)
    with pytest.raises(UnsupportedModel, match="is not supported"):
        probe(load_model(str(folder), device="cpu", dtype="float32"))


def test_a_model_whose_prepared_weights_are_wrong_does_not_start(tiny_gpt2_folder: Path) -> None:
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False)
    with torch.no_grad():
        model.hf.transformer.h[1].mlp.c_proj.weight[:, 0] += 1.0
    with pytest.raises(UnsupportedModel, match="logits in a mixed batch differ"):
        probe(model)


def test_a_model_that_gives_no_numbers_does_not_start(tiny_gpt2_folder: Path) -> None:
    model = load_model(str(tiny_gpt2_folder), device="cpu", dtype="float32", packed=False)
    with torch.no_grad():
        model.hf.transformer.ln_f.bias[0] = float("nan")
    with pytest.raises(UnsupportedModel, match="differ"):
        probe(model)


@pytest.mark.parametrize("name", ["native", "sdpa", "matmul"])
def test_the_attention_that_serves_is_the_one_that_is_probed(
    tiny_gpt2: FrozenModel, name: str
) -> None:
    shape = tiny_gpt2.spec.decoder
    chosen = choose_attention(
        name, shape.kv_heads, shape.head_dim, tiny_gpt2.device, tiny_gpt2.dtype
    )
    assert probe(tiny_gpt2, chosen) <= 1e-4


def test_an_attention_that_is_wrong_does_not_start_and_is_named(tiny_gpt2: FrozenModel) -> None:
    def wrong(*operands: torch.Tensor) -> torch.Tensor:
        return PRODUCTS.compute(*operands) * 1.5

    broken = Attention("broken", wrong, whole_slots=True)
    with pytest.raises(UnsupportedModel, match="with broken attention"):
        probe(tiny_gpt2, broken)
    assert probe(tiny_gpt2, FUSED) <= 1e-4
