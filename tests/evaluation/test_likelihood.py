"""Losses and divergences of single targets; the routes' tests compare them with transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.errors import GenerationFault
from app.evaluation import likelihood
from app.evaluation.likelihood import contrast, target_loss
from app.evaluation.text_pairs import TokenPair
from app.model.frozen import FrozenModel
from app.prefix.prefix import KeyValues, Prefix
from tests.tiny import random_prefix

PAIR = TokenPair(tuple(range(30, 39)), tuple(range(50, 70)))


@pytest.fixture(params=["gpt2", "bart"])
def model(request: pytest.FixtureRequest) -> FrozenModel:
    found: FrozenModel = request.getfixturevalue(f"tiny_{request.param}")
    return found


@pytest.mark.parametrize("chunk", [1, 7, 128])
def test_a_long_target_is_scored_in_chunks_with_the_same_result(
    model: FrozenModel, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (random_prefix(model, 4, seed=seed) for seed in (1, 2))
    whole = contrast(model, a, b, PAIR, PAIR)
    assert whole.num_tokens == len(PAIR.target_ids)
    monkeypatch.setattr(likelihood, "CHUNK", chunk)
    parts = contrast(model, a, b, PAIR, PAIR)
    for name in ("loss_a", "loss_b", "kl_ab", "kl_ba"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-5)
    assert target_loss(model, a, PAIR) == pytest.approx(whole.loss_a, rel=1e-5)


def test_swapping_the_prefixes_swaps_the_divergences(model: FrozenModel) -> None:
    a, b = (random_prefix(model, 4, seed=seed) for seed in (1, 2))
    there, back = contrast(model, a, b, PAIR, PAIR), contrast(model, b, a, PAIR, PAIR)
    assert (there.kl_ab, there.kl_ba) == (back.kl_ba, back.kl_ab)
    assert there.kl_ab > 0
    assert there.kl_ba > 0


def test_equal_prefixes_have_no_divergence(model: FrozenModel) -> None:
    a = random_prefix(model, 4, seed=1)
    b = Prefix(a.modules, replace(a.metadata, input_template="{input}"))
    assert a.digest != b.digest
    found = contrast(model, a, b, PAIR, PAIR)
    assert (found.kl_ab, found.kl_ba) == (0, 0)
    assert found.loss_a == found.loss_b


def test_a_target_is_scored_by_the_base_model_without_a_prefix(model: FrozenModel) -> None:
    alone = target_loss(model, None, PAIR)
    assert alone == contrast(model, None, random_prefix(model, 2), PAIR, PAIR).loss_a


def test_a_loss_that_is_not_finite_is_a_fault(model: FrozenModel) -> None:
    good = random_prefix(model, 2)
    broken = KeyValues(good.decoder.keys, torch.full_like(good.decoder.values, float("inf")))
    prefix = Prefix({"decoder": broken}, good.metadata)
    with pytest.raises(GenerationFault):
        target_loss(model, prefix, PAIR)
    with pytest.raises(GenerationFault):
        contrast(model, good, prefix, PAIR, PAIR)
