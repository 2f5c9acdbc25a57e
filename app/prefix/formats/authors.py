"""Checkpoints of the authors' own prefix-tuning code (Li & Liang 2021, github XiangLi1999).

They keep the MLP of the reparametrisation; here it is computed once. `gpt2/train_control.py` and
`seq2seq/prefixTuning.py` say what the tensors mean. GPT-2's tokens start behind the prefix, BART's
at 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from app.errors import BaseModelMismatch, InvalidPrefix
from app.prefix.formats.tensors import (
    Tensors,
    base_name,
    check_length,
    check_values,
    keys_values,
    mlp_rows,
    width,
)
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec, ModuleShape

WHAT = "checkpoint of the authors' code"
FAMILIES = ("gpt2", "bart")

_SUFFIXES = {"": "decoder", "_enc": "encoder", "2": "cross"}
"""What follows `wte` and `control_trans` in a name, and the attention that it is for."""
_NAME = re.compile(r"(wte|control_trans)(_enc|2|)((?:\.\d+)?\.(?:weight|bias))?")


def is_authors(names: Tensors) -> bool:
    """Whether these are the tensors of such a checkpoint."""
    return "control_trans" in names or "control_trans.0.weight" in names


def import_authors(
    tensors: Tensors,
    config: Mapping[str, Any],
    spec: BaseModelSpec,
    *,
    family: str,
    max_length: int,
) -> Prefix:
    """The prefix that the authors' code computes from these tensors.

    `config` holds the fields of its `config.json`, if there is one; `family` is the type of the
    served model. Raises InvalidPrefix or BaseModelMismatch.
    """
    _check_base(config, spec, family)
    if config.get("use_infix") or ("wte2.weight" in tensors and "encoder" not in spec.modules):
        raise InvalidPrefix(
            f"this {WHAT} is an infix: its keys and values are added to those of each source, so "
            "they are no prefix of their own; train it without --infix"
        )
    modules = {}
    for suffix, parts in _by_module(tensors).items():
        module = _SUFFIXES[suffix]
        if module not in spec.modules:
            raise BaseModelMismatch(
                f"this checkpoint has a prefix for {module} attention; base model "
                f"{spec.model_id!r} has no such attention"
            )
        name, shape = f"control_trans{suffix}", spec.modules[module]
        if set(parts) == {"control_trans"}:
            modules[module] = _direct(name, parts["control_trans"], shape, config)
        else:
            modules[module] = _flattened(name, parts, shape, max_length)
        check_length(modules[module].length, max_length, WHAT)
    if "decoder" not in modules:
        raise InvalidPrefix(f"not a usable {WHAT}: it has no prefix for the decoder")
    offset = 0 if "encoder" in spec.modules else modules["decoder"].length
    metadata = PrefixMetadata(
        position_offset=offset,
        base_model=base_name(config.get("_name_or_path")),
        provenance={"imported_from": "the authors' code", "base_type": family},
    )
    return Prefix(modules, metadata)


def _check_base(config: Mapping[str, Any], spec: BaseModelSpec, family: str) -> None:
    if family not in FAMILIES:
        raise BaseModelMismatch(
            f"the authors' code trains prefixes for GPT-2 and BART; {spec.model_id!r} is of type "
            f"{family!r}"
        )
    found = config.get("model_type", family)
    if found != family:
        raise BaseModelMismatch(
            f"this checkpoint is for a base model of type {ascii(found)[:60]}; {spec.model_id!r} "
            f"is of type {family!r}"
        )


def _by_module(tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each attention by what their names begin with; InvalidPrefix if unknown."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidPrefix(f"not a usable {WHAT}: unknown tensor {ascii(name[:60])}")
        base, suffix, rest = found[1], found[2], found[3] or ""
        modules.setdefault(suffix, {})[base + rest] = check_values(name, tensor, WHAT)
    return modules


def _flattened(name: str, parts: Tensors, shape: ModuleShape, max_length: int) -> KeyValues:
    """X = W2 tanh(W0 wteᵀ + b0) + b2, as keys and values; the deep variant has a layer more."""
    rows = mlp_rows(
        parts, torch.tanh, f"{WHAT} ({name})", outputs=width(shape), max_length=max_length
    )
    return keys_values(rows, shape)


def _direct(
    name: str, tensor: torch.Tensor, shape: ModuleShape, config: Mapping[str, Any]
) -> KeyValues:
    """Keys and values without an MLP (`init_shallow`).

    Those initialised by words have the cache's shape [layers × 2, 1, heads, positions, head size],
    random ones are flat: positions × layers × 2 × heads × head size.
    """
    if tensor.dim() == 1 and tensor.numel() and tensor.numel() % width(shape) == 0:
        length = tensor.numel() // width(shape)
        if config.get("preseqlen", length) == length:
            return keys_values(tensor.reshape(length, width(shape)), shape)
    if tensor.dim() == 5:
        size = (2 * shape.layers, 1, shape.kv_heads, tensor.shape[3], shape.head_dim)
        if tuple(tensor.shape) == size:
            slices = tensor[:, 0]
            return KeyValues(slices[0::2].contiguous(), slices[1::2].contiguous())
    raise BaseModelMismatch(
        f"tensor {name} has shape {list(tensor.shape)}; a prefix of this model has "
        f"{width(shape)} numbers for each position (layers × 2 × heads × head size)"
    )
