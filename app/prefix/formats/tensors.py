"""Tensors of foreign checkpoints: read with bounds, checked, and laid out as keys and values."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from app.errors import BaseModelMismatch, FileTooLarge, InvalidPrefix
from app.prefix.codec import load_checked
from app.prefix.header import LENGTH_BYTES, header_length, parse_header
from app.prefix.prefix import KeyValues
from app.prefix.spec import BaseModelSpec, ModuleShape

Tensors = Mapping[str, torch.Tensor]

MAX_BYTES = 2 << 30
"""The largest checkpoint that is read; three MLPs of a BART-large prefix have 250 MB."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_DIMENSIONS = 5
_MAX_HIDDEN = 16_384
"""Units of a hidden layer: a narrow layer behind a wide one could ask for any amount of memory."""
_MAX_NAME = 256


def read_tensors(path: Path, limit: int = MAX_BYTES) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file of at most `limit` bytes, in its own dtypes.

    Our own parser checks the header before the library sees the file. Raises FileTooLarge or
    InvalidPrefix.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileTooLarge(f"the checkpoint has {size} bytes; at most {limit} are taken")
        first = file.read(LENGTH_BYTES)
        raw = file.read(header_length(first, size))
        parse_header(raw, size)
        data = first + raw + file.read(limit)
    return load_checked(data, size)


def check_tensors(tensors: Mapping[Any, Any], limit: int = MAX_BYTES) -> dict[str, torch.Tensor]:
    """What a pickle of a state dict held; InvalidPrefix unless it is names and plain tensors.

    Their bytes are counted by shape, since a pickled tensor can be larger than its storage.
    """
    total = 0
    for name, tensor in tensors.items():
        if not isinstance(name, str) or len(name) > _MAX_NAME:
            raise InvalidPrefix("the checkpoint holds a key that is not the name of a tensor")
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise InvalidPrefix(f"{ascii(name)} in the checkpoint is not a plain tensor")
        total += tensor.numel() * tensor.element_size()
    if total > limit:
        raise FileTooLarge(
            f"the checkpoint has {total} bytes of tensors; at most {limit} are taken"
        )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def check_values(name: str, tensor: torch.Tensor, what: str) -> torch.Tensor:
    """The tensor, detached; InvalidPrefix unless it holds finite floating-point numbers."""
    if tensor.dtype not in _DTYPES or tensor.device.type != "cpu" or tensor.dim() > _MAX_DIMENSIONS:
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InvalidPrefix(
            f"not a usable {what}: tensor {name} has dtype {dtype}; float32, float16 and bfloat16 "
            "are taken"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidPrefix(
            f"not a usable {what}: tensor {name} holds a value that is NaN or infinite"
        )
    return tensor.detach()


def check_length(length: int, max_length: int, what: str) -> None:
    """InvalidPrefix unless a prefix may have `length` positions."""
    if not 1 <= length <= max_length:
        raise InvalidPrefix(
            f"not a usable {what}: it has {length} positions; 1 to {max_length} are taken"
        )


def check_fact(name: str, found: object, expected: int | str, spec: BaseModelSpec) -> None:
    """BaseModelMismatch unless a fact about the base model is what the served model has."""
    if found != expected or type(found) is not type(expected):
        raise BaseModelMismatch(
            f"this checkpoint is for a base model with {name} {ascii(found)[:60]}; "
            f"{spec.model_id!r} has {ascii(expected)}"
        )


def width(shape: ModuleShape) -> int:
    """Numbers that one position has in all layers: keys and values of all heads."""
    return shape.layers * 2 * shape.kv_heads * shape.head_dim


def keys_values(rows: torch.Tensor, shape: ModuleShape) -> KeyValues:
    """Keys and values from `rows` [positions, layers × 2 × kv_heads × head_dim].

    The layout of the authors' code, which PEFT and AdapterHub share: for each layer the key of all
    heads, then the value.
    """
    parts = rows.reshape(rows.shape[0], shape.layers, 2, shape.kv_heads, shape.head_dim)
    keys, values = parts.permute(2, 1, 3, 0, 4)
    return KeyValues(keys.contiguous(), values.contiguous())


def rows_of(module: KeyValues) -> torch.Tensor:
    """The inverse of `keys_values`: [positions, layers × 2 × kv_heads × head_dim]."""
    parts = torch.stack([module.keys, module.values])
    return parts.permute(3, 1, 0, 2, 4).reshape(module.length, -1).contiguous()


def base_name(text: object) -> str | None:
    """The base model that a checkpoint names: a hub id as it is, of a path the last part."""
    if not isinstance(text, str):
        return None
    parts = [part for part in text.replace("\\", "/").split("/") if part not in {"", ".", ".."}]
    is_hub_id = len(parts) == 2 and text == "/".join(parts)
    name = "/".join(parts) if is_hub_id else "".join(parts[-1:])
    return name[:128] if name.isprintable() and name else None


def mlp_rows(
    parts: Tensors,
    activation: Callable[[torch.Tensor], torch.Tensor],
    what: str,
    *,
    outputs: int,
    max_length: int,
) -> torch.Tensor:
    """`rows` for `keys_values` by the MLP of the reparametrisation, in float32.

    `parts` are `wte.weight` [positions, width] and `control_trans.N.weight` and `.bias` for N = 0,
    2 and in deep ones 4; `activation` is between the layers. Raises InvalidPrefix for other
    tensors or shapes, BaseModelMismatch unless the last layer has `outputs` outputs.
    """
    steps = [step for step in (0, 2, 4) if f"control_trans.{step}.weight" in parts]
    expected = {"wte.weight"} | {
        f"control_trans.{step}.{part}" for step in steps for part in ("weight", "bias")
    }
    if len(steps) < 2 or steps[-1] != 2 * len(steps) - 2 or set(parts) != expected:
        found = ", ".join(sorted(parts)[:8])
        raise InvalidPrefix(
            f"not a usable {what}: its tensors are {ascii(found)}; wte.weight and two or three "
            "linear layers control_trans.0, .2, .4 are needed"
        )
    rows = parts["wte.weight"].float()
    check_length(rows.shape[0] if rows.dim() == 2 else 0, max_length, what)
    last = parts[f"control_trans.{steps[-1]}.weight"]
    if last.dim() == 2 and last.shape[0] != outputs:
        raise BaseModelMismatch(
            f"the MLP of this {what} makes {last.shape[0]} numbers for each position; a prefix of "
            f"this model has {outputs} (layers × 2 × heads × head size)"
        )
    for step in steps:
        weight, bias = parts[f"control_trans.{step}.weight"], parts[f"control_trans.{step}.bias"]
        fits = rows.dim() == weight.dim() == 2 and rows.shape[1] == weight.shape[1]
        if step != steps[-1] and weight.shape[0] > _MAX_HIDDEN:
            raise InvalidPrefix(
                f"not a usable {what}: layer control_trans.{step} has {weight.shape[0]} units; at "
                f"most {_MAX_HIDDEN} are taken"
            )
        if not fits or tuple(bias.shape) != tuple(weight.shape[:1]):
            raise InvalidPrefix(
                f"not a usable {what}: layer control_trans.{step} of shape {list(weight.shape)} "
                "does not fit what is before it"
            )
        rows = torch.nn.functional.linear(rows, weight.float(), bias.float())
        rows = rows if step == steps[-1] else activation(rows)
    return rows
