"""Families: what is served equals plain transformers; what would silently differ is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, StableLmForCausalLM

from app.engine.config import EngineConfig
from app.errors import UnsupportedModel
from app.model.dense import dense_logits
from app.model.families import check_supported
from app.model.load import load_model
from tests.engine.harness import SteppedEngine, make_request
from tests.equivalence.reference import greedy_logits, plain_model
from tests.model.architectures import REFUSED, SERVED, STABLELM
from tests.tiny import gpt2_config, random_prefix, save_model


@pytest.mark.parametrize("name", SERVED)
def test_a_served_family_equals_plain_transformers_in_a_mixed_batch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model_class = SERVED[name]
    folder = save_model(tmp_path / name, config, model_class)
    model = load_model(str(folder), device="cpu", dtype="float32")
    assert model.notes["packed_weights"] == "on"
    stepped = SteppedEngine(model, EngineConfig(max_step_tokens=24), monkeypatch)
    requests = [
        make_request("bare", range(40, 51), 6),
        make_request("shifted", range(60, 90), 6, [random_prefix(model, 9, seed=1)]),
        make_request(
            "unshifted", range(5, 8), 6, [random_prefix(model, 4, seed=2, position_offset=0)], n=2
        ),
    ]
    for request in requests:
        stepped.add(request)
    stepped.run()
    for request in requests:
        for row in range(request.n):
            tokens = stepped.tokens(request.id, row)
            expected = greedy_logits(
                plain_model(folder), request.prefixes, request.prompt_ids, tokens
            )
            got = torch.stack(stepped.logits[(request.id, row)])
            assert float((got - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_would_silently_differ_is_refused_by_what_it_needs(
    name: str, tmp_path: Path
) -> None:
    config, feature = REFUSED[name]
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=feature):
        load_model(str(tmp_path), device="cpu", dtype="float32")


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_type_of_the_model(name: str) -> None:
    config, _ = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=repr(config.model_type)):
        check_supported(config)


def test_a_model_that_drops_the_plan_fails_loudly_instead_of_mixing_rows(tmp_path: Path) -> None:
    folder = save_model(tmp_path, STABLELM, StableLmForCausalLM)
    model = load_model(str(folder), device="cpu", dtype="float32")
    with pytest.raises(UnsupportedModel, match="did not pass the plan on"):
        dense_logits(model, torch.tensor([[1, 2, 3]]))


def test_a_config_without_a_position_limit_is_refused() -> None:
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=1)
    with pytest.raises(UnsupportedModel, match="max_position_embeddings"):
        check_supported(config)


def test_a_config_that_asks_for_nothing_special_passes() -> None:
    check_supported(gpt2_config())
