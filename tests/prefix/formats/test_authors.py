"""Checkpoints of the authors' code give what its formulas give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from app.errors import BaseModelMismatch, InvalidPrefix
from app.model.frozen import FrozenModel
from app.prefix.formats.authors import import_authors
from app.prefix.prefix import KeyValues, Prefix
from tests.foreign_models import TOKENS, frozen, our_logits, plain, prepended_logits, save_base

LENGTH, HIDDEN, MIDDLE = 5, 32, 12
LAYERS, HEADS, SIZE = 2, 4, 8
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def gpt2(folder: Path) -> FrozenModel:
    return frozen(folder)


def mlp(suffix: str = "", *, layers: int = LAYERS, deep: bool = False, seed: int = 1) -> Tensors:
    """`wte` and `control_trans` of one attention, as torch initialises them."""
    torch.manual_seed(seed)
    widths = [HIDDEN, MIDDLE, *([MIDDLE] if deep else []), layers * 2 * HIDDEN]
    made = {f"wte{suffix}.weight": torch.randn(LENGTH, HIDDEN)}
    for step, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        name = f"control_trans{suffix}.{2 * step}"
        made[f"{name}.weight"] = torch.randn(after, before) / before**0.5
        made[f"{name}.bias"] = torch.randn(after)
    return made


def produced(tensors: Tensors, suffix: str = "", *, layers: int = LAYERS) -> torch.Tensor:
    """`get_prompt_p5`: [layers × 2, 1, heads, positions, head size]."""
    x = tensors[f"wte{suffix}.weight"]
    steps = [0, 2, 4] if f"control_trans{suffix}.4.weight" in tensors else [0, 2]
    for step in steps:
        name = f"control_trans{suffix}.{step}"
        x = x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
        x = x if step == steps[-1] else torch.tanh(x)
    return x.view(1, LENGTH, layers * 2, HEADS, SIZE).permute(2, 0, 3, 1, 4)


def same(module: KeyValues, slices: torch.Tensor) -> None:
    torch.testing.assert_close(module.keys, slices[0::2, 0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(module.values, slices[1::2, 0], atol=2e-6, rtol=1e-5)


def read(tensors: Tensors, model: FrozenModel, limit: int = 100, **config: object) -> Prefix:
    return import_authors(tensors, config, model.spec, family=model.family, max_length=limit)


@pytest.mark.parametrize("variant", ["mlp", "deep", "words", "flat"])
def test_gpt2_computes_what_the_authors_code_computes(
    variant: str, folder: Path, gpt2: FrozenModel
) -> None:
    tensors = mlp(deep=variant == "deep")
    slices = produced(tensors)
    if variant == "words":
        tensors = {"control_trans": slices}
    if variant == "flat":
        tensors = {"control_trans": slices.permute(1, 3, 0, 2, 4).flatten()}
    prefix = read(tensors, gpt2, preseqlen=LENGTH, model_type="gpt2", _name_or_path="/x/gpt2")
    same(prefix.decoder, slices)
    assert prefix.metadata.position_offset == LENGTH
    assert prefix.metadata.base_model == "gpt2"
    cache = DynamicCache()
    for layer in range(LAYERS):
        cache.update(slices[2 * layer], slices[2 * layer + 1], layer)
    with torch.inference_mode():
        theirs = plain(folder)(input_ids=TOKENS, past_key_values=cache).logits
    torch.testing.assert_close(our_logits(gpt2, prefix), theirs, atol=3e-5, rtol=1e-5)


def test_bart_has_three_prefixes_and_tokens_at_zero(tmp_path: Path) -> None:
    bart = save_base("bart-3", tmp_path)
    model = frozen(bart)
    places = {"": "decoder", "_enc": "encoder", "2": "cross"}
    parts = {suffix: mlp(suffix, layers=3, seed=number) for number, suffix in enumerate(places)}
    tensors = {name: tensor for part in parts.values() for name, tensor in part.items()}
    prefix = read(tensors, model, model_type="bart")
    assert set(prefix.modules) == set(places.values())
    assert prefix.metadata.position_offset == 0
    slices = {places[suffix]: produced(tensors, suffix, layers=3) for suffix in places}
    for module, made in slices.items():
        same(prefix.modules[module], made)
    theirs = prepended_logits(bart, slices)
    torch.testing.assert_close(our_logits(model, prefix), theirs, atol=3e-5, rtol=1e-5)


def test_an_infix_is_refused_with_the_reason(gpt2: FrozenModel) -> None:
    infix = {**mlp(), "wte2.weight": torch.randn(LENGTH, HIDDEN)}
    for tensors, config in ((infix, {}), (mlp(deep=True), {"use_infix": True})):
        with pytest.raises(InvalidPrefix, match="is an infix"):
            read(tensors, gpt2, **config)


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


def hidden(units: int) -> Tensors:
    """A deep MLP with one narrow and one wide hidden layer, small as a file."""
    widths = [1, units, 1, 128]
    made = {"wte.weight": torch.zeros(LENGTH, 1)}
    for step, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        made[f"control_trans.{2 * step}.weight"] = torch.zeros(after, before)
        made[f"control_trans.{2 * step}.bias"] = torch.zeros(after)
    return made


HOSTILE: Mapping[str, tuple[Tensors, dict[str, object], type[Exception], str]] = {
    "layers": (mlp(layers=3), {}, BaseModelMismatch, "192 numbers"),
    "embeddings only": (
        {**mlp(), "control_trans.2.weight": torch.zeros(HIDDEN, MIDDLE)},
        {},
        BaseModelMismatch,
        "32 numbers",
    ),
    "wide": (hidden(20_000), {}, InvalidPrefix, "20000 units; at most 16384"),
    "flat width": ({"control_trans": torch.zeros(130)}, {}, BaseModelMismatch, "128 numbers"),
    "flat length": (
        {"control_trans": torch.zeros(128)},
        {"preseqlen": 5},
        BaseModelMismatch,
        "128",
    ),
    "cache": ({"control_trans": torch.zeros(4, 2, 4, 5, 8)}, {}, BaseModelMismatch, "shape"),
    "empty": ({"control_trans": torch.zeros(0)}, {}, BaseModelMismatch, "shape"),
    "NaN": (
        {**mlp(), "control_trans.0.bias": torch.full((12,), float("nan"))},
        {},
        InvalidPrefix,
        "NaN",
    ),
    "missing": (without(mlp(), "control_trans.0.bias"), {}, InvalidPrefix, "are needed"),
    "middle": (
        {**mlp(), "control_trans.0.weight": torch.zeros(13, HIDDEN)},
        {},
        InvalidPrefix,
        "does not fit",
    ),
    "other key": ({**mlp(), "lm_head.weight": torch.zeros(1)}, {}, InvalidPrefix, "unknown tensor"),
    "type": (mlp(), {"model_type": "bart"}, BaseModelMismatch, "type 'bart'"),
    "encoder": ({**mlp(), **mlp("_enc")}, {}, BaseModelMismatch, "encoder attention"),
    "long": (
        {**mlp(), "wte.weight": torch.zeros(101, HIDDEN)},
        {},
        InvalidPrefix,
        "101 positions",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_does_not_fit_is_refused(case: str, gpt2: FrozenModel) -> None:
    tensors, config, error, words = HOSTILE[case]
    with pytest.raises(error, match=words):
        read(tensors, gpt2, **config)


def test_other_families_are_refused(gpt2: FrozenModel) -> None:
    with pytest.raises(BaseModelMismatch, match="'llama'"):
        import_authors(mlp(), {}, gpt2.spec, family="llama", max_length=100)
