"""Prefix-tuning adapters of AdapterHub's library `adapters`, with and without their MLP.

The library puts the prefix into the attention after the cache, so tokens start at 0 on every model
(`adapters/methods/prefix_tuning.py`, 1.2.0).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from app.errors import BaseModelMismatch, InvalidPrefix
from app.prefix.formats.tensors import (
    Tensors,
    base_name,
    check_fact,
    check_length,
    check_values,
    keys_values,
    mlp_rows,
    width,
)
from app.prefix.prefix import KeyValues, Prefix, PrefixMetadata
from app.prefix.spec import BaseModelSpec, ModuleShape

WHAT = "AdapterHub adapter"

_MODULES = {"self_prefix": "decoder", "encoder_prefix": "encoder", "cross_prefix": "cross"}
_NAME = re.compile(
    r"(?:[a-z_]+\.){0,3}prefix_tuning\.prefix_tunings\.([^.]{1,100})\."
    r"(self_prefix|encoder_prefix|cross_prefix)\.(control_trans|wte\.weight|"
    r"control_trans\.\d\.(?:weight|bias))"
)
_COPY = ".prefix_tuning.pool."
"""Marks the copies of all tensors that each attention layer of a saved adapter has."""
_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
}


def is_adapterhub(names: Tensors) -> bool:
    """Whether these are the tensors of such an adapter."""
    return any("prefix_tuning.prefix_tunings." in name for name in names)


def import_adapterhub(
    tensors: Tensors,
    config: Mapping[str, Any],
    spec: BaseModelSpec,
    *,
    family: str,
    max_length: int,
) -> Prefix:
    """The prefix that `adapters` attends to with these tensors.

    `config` holds the fields of `adapter_config.json`; `family` is the type of the served model.
    Raises InvalidPrefix or BaseModelMismatch.
    """
    inner = config.get("config")
    settings: Mapping[str, Any] = inner if isinstance(inner, dict) else {}
    check_fact("model_type", config.get("model_type", family), family, spec)
    gated = any(".prefix_gates." in name for name in tensors)
    if gated or settings.get("use_gating"):
        raise InvalidPrefix(
            f"this {WHAT} has gates (use_gating): they weigh the prefix anew for each input, so no "
            "fixed keys and values stand for it; train it without gating"
        )
    modules = {}
    for place, parts in _by_module(tensors).items():
        module = _module_of(place, spec)
        _check_leave_out(place, module, spec, settings)
        _check_heads(parts, spec.modules[module], config, spec)
        modules[module] = _read(place, parts, spec.modules[module], settings, max_length)
        check_length(modules[module].length, max_length, WHAT)
    if "decoder" not in modules:
        raise InvalidPrefix(
            f"not a usable {WHAT}: it has no self_prefix, and every prefix of this server needs "
            "keys and values for the decoder"
        )
    version = config.get("version")
    metadata = PrefixMetadata(
        position_offset=0,
        base_model=base_name(config.get("model_name")),
        provenance={
            "imported_from": "AdapterHub",
            **({"adapters_version": version[:32]} if isinstance(version, str) else {}),
        },
    )
    return Prefix(modules, metadata)


def _by_module(tensors: Tensors) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each attention, without the copies; InvalidPrefix if others are there."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    adapters = set()
    for name, tensor in tensors.items():
        if _COPY in name:
            continue
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidPrefix(
                f"not a usable {WHAT}: besides the prefix it has {ascii(name[:80])}, which no "
                "prefix stands for"
            )
        adapters.add(found[1])
        modules.setdefault(found[2], {})[found[3]] = check_values(name, tensor, WHAT)
    if len(adapters) > 1:
        raise InvalidPrefix(
            f"not a usable {WHAT}: it holds {len(adapters)} adapters; save one of them alone"
        )
    return modules


def _module_of(place: str, spec: BaseModelSpec) -> str:
    module = _MODULES[place]
    if module not in spec.modules:
        raise BaseModelMismatch(
            f"this {WHAT} has an {place}; base model {spec.model_id!r} has no such attention"
        )
    return module


def _read(
    place: str, parts: Tensors, shape: ModuleShape, settings: Mapping[str, Any], max_length: int
) -> KeyValues:
    """Keys and values of one attention. What is flat is told by its shape.

    An adapter that was ejected is flat though its config denies it.
    """
    if set(parts) == {"control_trans"}:
        flat = parts["control_trans"]
        length = settings.get("prefix_length")
        if type(length) is not int or length < 1 or flat.dim() != 1 or flat.numel() % length:
            raise InvalidPrefix(
                f"not a usable {WHAT}: {place} has {flat.numel()} numbers, which is no multiple of "
                f"its config's prefix_length {ascii(length)[:20]}"
            )
        rows = flat.reshape(length, -1)
    else:
        name = str(settings.get("non_linearity", "tanh")).lower()
        if name not in _ACTIVATIONS:
            raise InvalidPrefix(
                f"not a usable {WHAT}: its non_linearity is {ascii(name[:40])}; "
                f"{' and '.join(_ACTIVATIONS)} are taken. Eject it first (eject_prefix_tuning)"
            )
        last = parts.get("control_trans.2.weight")
        outputs = width(shape) if last is None else last.shape[0]
        rows = mlp_rows(
            parts,
            _ACTIVATIONS[name],
            f"{WHAT} ({place})",
            outputs=outputs,
            max_length=max_length,
        )
    if rows.shape[1] != width(shape):
        raise BaseModelMismatch(
            f"{place} has {rows.shape[1]} numbers for each position; this model needs "
            f"{width(shape)} (layers × 2 × heads × head size)"
        )
    return keys_values(rows, shape)


def _check_leave_out(
    place: str, module: str, spec: BaseModelSpec, settings: Mapping[str, Any]
) -> None:
    """The prefix must reach all layers: zeros would still take part in the softmax of others.

    The library counts the decoder's layers behind the encoder's.
    """
    left_out = settings.get("leave_out") or []
    if not isinstance(left_out, list) or not all(type(each) is int for each in left_out):
        raise InvalidPrefix(
            f"not a usable {WHAT}: its config's leave_out is {ascii(left_out)[:40]}, not a list of "
            "layers"
        )
    encoder = spec.modules.get("encoder")
    first = 0 if encoder is None or module == "encoder" else encoder.layers
    layers = spec.modules[module].layers
    missing = sorted(set(left_out) & set(range(first, first + layers)))
    if missing:
        raise InvalidPrefix(
            f"this {WHAT} leaves layers out (leave_out): {place} has a prefix in "
            f"{layers - len(missing)} of {layers} layers. A prefix file has one for every layer, "
            "and none would equal no prefix; train it without leave_out"
        )


def _check_heads(
    parts: Tensors, shape: ModuleShape, config: Mapping[str, Any], spec: BaseModelSpec
) -> None:
    """The library makes keys for as many numbers as the hidden size, which all query heads have."""
    embedding = parts.get("wte.weight")
    given = config.get("hidden_size")
    found = given if type(given) is int or embedding is None else embedding.shape[-1]
    if type(found) is int and found != shape.kv_heads * shape.head_dim:
        raise BaseModelMismatch(
            f"this {WHAT} has keys of {found} numbers in each layer, for every query head; "
            f"{spec.model_id!r} has {shape.kv_heads} heads of keys of size {shape.head_dim}, which "
            "groups of query heads may share. A prefix file holds keys for each group, so the "
            "adapter must be of a model without such groups and of the same hidden size"
        )
