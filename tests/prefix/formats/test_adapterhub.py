"""AdapterHub's prefix-tuning adapters, by the names that the library gives its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from app.errors import BaseModelMismatch, InvalidPrefix
from app.model.frozen import FrozenModel
from app.prefix.formats.adapterhub import import_adapterhub
from app.prefix.prefix import Prefix
from tests.foreign_models import TOKENS, frozen, our_logits, plain, prepended_logits, save_base

LENGTH, HIDDEN, MIDDLE = 4, 32, 10
HEADS, SIZE = 4, 8
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {family: save_base(family, root / family) for family in ("gpt2", "bart-3", "llama")}


@pytest.fixture(scope="module")
def gpt2(folders: Mapping[str, Path]) -> FrozenModel:
    return frozen(folders["gpt2"])


@pytest.fixture(scope="module")
def llama(folders: Mapping[str, Path]) -> FrozenModel:
    """Two heads of queries share one of keys."""
    return frozen(folders["llama"])


@pytest.fixture(scope="module")
def bart(folders: Mapping[str, Path]) -> FrozenModel:
    return frozen(folders["bart-3"])


def config(**changes: object) -> dict[str, object]:
    """An `adapter_config.json` of 1.2.0."""
    inner = {
        "architecture": "prefix_tuning",
        "prefix_length": LENGTH,
        "bottleneck_size": MIDDLE,
        "non_linearity": "tanh",
        "flat": False,
        "use_gating": False,
        "leave_out": [],
        **changes,
    }
    return {"config": inner, "model_name": "gpt2", "name": "task", "version": "adapters.1.2.0"}


def mlp(place: str = "self_prefix", *, root: str = "transformer", layers: int = 2) -> Tensors:
    """The tensors of one attention, with a copy in each layer as the library saves them."""
    torch.manual_seed(len(place))
    facts = {
        "wte.weight": torch.randn(LENGTH, HIDDEN),
        "control_trans.0.weight": torch.randn(MIDDLE, HIDDEN) / HIDDEN**0.5,
        "control_trans.0.bias": torch.randn(MIDDLE),
        "control_trans.2.weight": torch.randn(layers * 2 * HIDDEN, MIDDLE) / MIDDLE**0.5,
        "control_trans.2.bias": torch.randn(layers * 2 * HIDDEN),
    }
    return named(place, facts, root)


def named(place: str, facts: Tensors, root: str = "transformer") -> Tensors:
    """The names of a saved adapter, copies included; those hold other values to tell them apart."""
    own = f"{root}.prefix_tuning.prefix_tunings.task.{place}."
    copy = f"{root}.h.0.attn.prefix_tuning.pool.prefix_tunings.task.{place}."
    return {
        **{own + name: tensor for name, tensor in facts.items()},
        **{copy + name: torch.zeros_like(tensor) for name, tensor in facts.items()},
    }


def produced(
    tensors: Tensors, place: str, *, root: str = "transformer", relu: bool = False
) -> torch.Tensor:
    """`PrefixTuning.forward`: [layers × 2, 1, heads, positions, head size]."""
    start = f"{root}.prefix_tuning.prefix_tunings.task.{place}."
    wte, w0, b0, w2, b2 = (
        tensors[start + name]
        for name in (
            "wte.weight",
            "control_trans.0.weight",
            "control_trans.0.bias",
            "control_trans.2.weight",
            "control_trans.2.bias",
        )
    )
    middle = wte @ w0.T + b0
    x = (torch.relu(middle) if relu else torch.tanh(middle)) @ w2.T + b2
    return x.view(1, LENGTH, -1, HEADS, SIZE).permute(2, 0, 3, 1, 4)


def read(
    tensors: Tensors, facts: Mapping[str, object], model: FrozenModel, limit: int = 99
) -> Prefix:
    return import_adapterhub(tensors, facts, model.spec, family=model.family, max_length=limit)


@pytest.mark.parametrize("variant", ["mlp", "relu", "flat", "ejected"])
def test_gpt2_computes_what_the_library_computes(
    variant: str, folders: Mapping[str, Path], gpt2: FrozenModel
) -> None:
    tensors = mlp()
    slices = produced(tensors, "self_prefix", relu=variant == "relu")
    facts = config(non_linearity="ReLU" if variant == "relu" else "tanh", flat=variant == "flat")
    if variant in {"flat", "ejected"}:
        tensors = named("self_prefix", {"control_trans": slices.permute(1, 3, 0, 2, 4).flatten()})
    prefix = read(tensors, facts, gpt2)
    torch.testing.assert_close(prefix.decoder.keys, slices[0::2, 0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(prefix.decoder.values, slices[1::2, 0], atol=2e-6, rtol=1e-5)
    assert prefix.metadata.position_offset == 0
    assert prefix.metadata.provenance["adapters_version"] == "adapters.1.2.0"
    cache = DynamicCache()
    for layer in range(2):
        cache.update(slices[2 * layer], slices[2 * layer + 1], layer)
    positions = torch.arange(TOKENS.shape[1])[None]
    with torch.inference_mode():
        theirs = plain(folders["gpt2"])(
            input_ids=TOKENS, past_key_values=cache, position_ids=positions
        ).logits
    torch.testing.assert_close(our_logits(gpt2, prefix), theirs, atol=3e-5, rtol=1e-5)


def test_bart_has_the_attentions_that_the_adapter_has(
    folders: Mapping[str, Path], bart: FrozenModel
) -> None:
    places = {"self_prefix": "decoder", "encoder_prefix": "encoder", "cross_prefix": "cross"}
    parts = {place: mlp(place, root="model", layers=3) for place in places}
    for kept in (tuple(places), ("self_prefix", "encoder_prefix"), ("self_prefix",)):
        tensors = {name: tensor for place in kept for name, tensor in parts[place].items()}
        prefix = read(tensors, config(), bart)
        assert set(prefix.modules) == {places[place] for place in kept}
        assert prefix.metadata.position_offset == 0
        slices = {places[place]: produced(tensors, place, root="model") for place in kept}
        for module, made in slices.items():
            keys, values = prefix.modules[module].keys, prefix.modules[module].values
            torch.testing.assert_close(keys, made[0::2, 0], atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(values, made[1::2, 0], atol=2e-6, rtol=1e-5)
        theirs = prepended_logits(folders["bart-3"], slices)
        torch.testing.assert_close(our_logits(bart, prefix), theirs, atol=3e-5, rtol=1e-5)


def test_a_gated_adapter_is_refused_with_the_reason(gpt2: FrozenModel) -> None:
    gate = {"transformer.h.0.attn.prefix_tuning.prefix_gates.task.weight": torch.zeros(1, HIDDEN)}
    for tensors, facts in (({**mlp(), **gate}, config()), (mlp(), config(use_gating=True))):
        with pytest.raises(InvalidPrefix, match="gates"):
            read(tensors, facts, gpt2)


def test_layers_that_are_left_out_are_refused_and_whole_attentions_are_not(
    gpt2: FrozenModel, bart: FrozenModel
) -> None:
    with pytest.raises(InvalidPrefix, match="1 of 2 layers"):
        read(mlp(layers=1), config(leave_out=[1]), gpt2)
    whole = mlp("self_prefix", root="model", layers=3)
    assert set(read(whole, config(leave_out=[0, 1, 2]), bart).modules) == {"decoder"}
    alone = mlp("encoder_prefix", root="model", layers=3)
    with pytest.raises(InvalidPrefix, match="no self_prefix"):
        read(alone, config(leave_out=[3, 4, 5]), bart)


def test_left_out_layers_do_not_pass_for_the_heads_of_a_group(llama: FrozenModel) -> None:
    shape = llama.spec.decoder
    hidden = int(llama.hf.config.hidden_size)
    assert hidden == 2 * shape.kv_heads * shape.head_dim
    assert shape.layers == 2
    flat = torch.zeros(LENGTH * 2 * hidden)  # one layer of all query heads: as many numbers
    tensors = named("self_prefix", {"control_trans": flat}, "model")
    with pytest.raises(InvalidPrefix, match="self_prefix has a prefix in 1 of 2 layers"):
        read(tensors, config(leave_out=[0]), llama)
    with pytest.raises(InvalidPrefix, match="leave_out is 'all'"):
        read(tensors, config(leave_out="all"), llama)
    with pytest.raises(BaseModelMismatch, match="for every query head"):
        read(tensors, {**config(), "hidden_size": hidden}, llama)
    with pytest.raises(BaseModelMismatch, match="for every query head"):
        read(mlp(root="model"), config(), llama)


NAN = torch.full((LENGTH * 128,), float("nan"))
HOSTILE: Mapping[str, tuple[Tensors, dict[str, object], type[Exception], str]] = {
    "layers": (mlp(layers=3), config(), BaseModelMismatch, "192 numbers"),
    "encoder": ({**mlp(), **mlp("encoder_prefix")}, config(), BaseModelMismatch, "encoder_prefix"),
    "type": (mlp(), {**config(), "model_type": "bart"}, BaseModelMismatch, "model_type 'bart'"),
    "NaN": (named("self_prefix", {"control_trans": NAN}), config(), InvalidPrefix, "NaN"),
    "length": (
        named("self_prefix", {"control_trans": torch.zeros(513)}),
        config(),
        InvalidPrefix,
        "no multiple",
    ),
    "no length": (
        named("self_prefix", {"control_trans": torch.zeros(512)}),
        config(prefix_length=None),
        InvalidPrefix,
        "prefix_length None",
    ),
    "long": (mlp(), config(), InvalidPrefix, "4 positions; 1 to 3"),
    "activation": (mlp(), config(non_linearity="swish"), InvalidPrefix, "'swish'"),
    "two": (
        {**mlp(), "transformer.prefix_tuning.prefix_tunings.b.self_prefix.control_trans": NAN[:0]},
        config(),
        InvalidPrefix,
        "2 adapters",
    ),
    "bottleneck too": (
        {**mlp(), "transformer.h.0.adapters.task.adapter_down.0.weight": torch.zeros(1)},
        config(),
        InvalidPrefix,
        "besides the prefix",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_does_not_fit_is_refused(case: str, gpt2: FrozenModel) -> None:
    tensors, facts, error, words = HOSTILE[case]
    with pytest.raises(error, match=words):
        read(tensors, facts, gpt2, limit=3 if case == "long" else 99)
