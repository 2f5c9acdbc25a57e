"""Dense passes: plain transformers' logits, real words as a prefix, gradients into the prefix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.model.dense import dense_logits, keys_values_of
from app.model.frozen import FrozenModel
from app.model.load import load_model
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from tests.equivalence.reference import greedy_logits, plain_model
from tests.tiny import random_prefix

FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
WORDS, PROMPT = tuple(range(70, 79)), tuple(range(30, 47))


@pytest.fixture(scope="module")
def plain_weights(model_folders: dict[str, Path]) -> FrozenModel:
    """The tiny GPT-2 as training loads it: without packed weights."""
    return load_model(str(model_folders["gpt2"]), device="cpu", dtype="float32", packed=False)


@FAMILIES
@torch.inference_mode()
def test_without_a_prefix_the_logits_are_those_of_plain_transformers(
    tiny_models: dict[str, FrozenModel], model_folders: dict[str, Path], family: str
) -> None:
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    expected = plain_model(model_folders[family])(ids).logits
    got = dense_logits(tiny_models[family], ids)
    assert float((got - expected).abs().max()) <= 1e-4


@FAMILIES
@torch.inference_mode()
def test_keys_and_values_of_real_words_act_as_those_words_prepended(
    tiny_models: dict[str, FrozenModel], family: str
) -> None:
    model = tiny_models[family]
    words = keys_values_of(model, WORDS)
    shape = model.spec.decoder
    assert words.keys.shape == (shape.layers, shape.kv_heads, len(WORDS), shape.head_dim)
    got = dense_logits(model, torch.tensor([PROMPT]), words, position_offset=len(WORDS))
    expected = dense_logits(model, torch.tensor([WORDS + PROMPT]))[:, len(WORDS) :]
    assert float((got - expected).abs().max()) <= 1e-4


@FAMILIES
def test_real_words_as_a_prefix_equal_those_words_in_plain_transformers(
    tiny_models: dict[str, FrozenModel], model_folders: dict[str, Path], family: str
) -> None:
    words = keys_values_of(tiny_models[family], WORDS)
    prefix = Prefix({"decoder": words}, PrefixMetadata(position_offset=len(WORDS)))
    plain = plain_model(model_folders[family])
    forced = (5, 6, 7)
    got = greedy_logits(plain, [prefix], PROMPT, forced)
    expected = greedy_logits(plain, [], WORDS + PROMPT, forced)
    assert float((got - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize("offset", [0, 7])
@torch.inference_mode()
def test_a_prefix_acts_as_the_cache_of_plain_transformers(
    tiny_gpt2: FrozenModel, tiny_gpt2_folder: Path, offset: int
) -> None:
    prefix = random_prefix(tiny_gpt2, 7, position_offset=offset)
    got = dense_logits(tiny_gpt2, torch.tensor([PROMPT]), prefix.decoder, position_offset=offset)[
        0, -1
    ]
    [expected] = greedy_logits(plain_model(tiny_gpt2_folder), [prefix], PROMPT, [0])
    assert float((got - expected).abs().max()) <= 1e-4


@torch.inference_mode()
def test_padding_on_the_right_does_not_change_a_row(tiny_gpt2: FrozenModel) -> None:
    prefix = random_prefix(tiny_gpt2, 3).decoder
    short = torch.tensor([PROMPT[:5]])
    padded = torch.tensor([PROMPT[:5] + (0,) * 6, PROMPT[:11]])
    alone = dense_logits(tiny_gpt2, short, prefix, position_offset=3)
    together = dense_logits(tiny_gpt2, padded, prefix, position_offset=3)
    assert float((alone[0] - together[0, :5]).abs().max()) <= 1e-5


def test_gradients_flow_into_the_prefix_and_nowhere_else(plain_weights: FrozenModel) -> None:
    made = random_prefix(plain_weights, 4).decoder
    prefix = KeyValues(made.keys.requires_grad_(), made.values.requires_grad_())
    logits = dense_logits(plain_weights, torch.tensor([PROMPT]), prefix, position_offset=4)
    logits.logsumexp(-1).sum().backward()
    for tensor in (prefix.keys, prefix.values):
        assert tensor.grad is not None
        # every layer, head and position is attended to
        assert bool((tensor.grad.abs().amax(-1) > 0).all())
    assert all(parameter.grad is None for parameter in plain_weights.hf.parameters())


def test_the_gradient_is_the_slope_of_the_loss(plain_weights: FrozenModel) -> None:
    made = random_prefix(plain_weights, 2, seed=3).decoder
    ids = torch.tensor([PROMPT])

    def loss(keys: torch.Tensor) -> torch.Tensor:
        prefix = KeyValues(keys, made.values)
        return dense_logits(plain_weights, ids, prefix, position_offset=2).logsumexp(-1).sum()

    keys = made.keys.clone().requires_grad_()
    loss(keys).backward()
    assert keys.grad is not None
    direction = keys.grad / keys.grad.norm()
    with torch.no_grad():
        step = 1e-2
        slope = (loss(keys + step * direction) - loss(keys - step * direction)) / (2 * step)
    assert float(slope) == pytest.approx(float(keys.grad.norm()), rel=0.02)


def test_keys_and_values_of_words_may_be_trained_further(plain_weights: FrozenModel) -> None:
    words = keys_values_of(plain_weights, WORDS)
    assert not words.keys.is_inference()
    prefix = KeyValues(words.keys.requires_grad_(), words.values)
    dense_logits(plain_weights, torch.tensor([PROMPT]), prefix).sum().backward()
    assert prefix.keys.grad is not None
