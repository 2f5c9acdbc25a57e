"""Files of what is trained and is no prefix: infixes, fine-tuned weights, adapters and LoRA.

The format is `polyprefix-METHOD/1`: a safetensors file with the trained tensors, as `trained.NAME`,
and metadata. It fits one base model, which its fingerprint names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from app.errors import InvalidRequest
from app.training.methods.method import State
from app.training.methods.names import METHODS, PREFIX_METHODS

_TENSORS = "trained."


@dataclass(frozen=True)
class TrainedFile:
    """The content of such a file. `recipe` holds the settings that rebuild the method."""

    method: str
    state: State
    base_fingerprint: str
    base_model: str
    input_template: str
    decoding: Mapping[str, Any]
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]


def write_trained(file: TrainedFile, path: Path) -> None:
    """Write the file, completely or not at all. Raises OSError if that fails."""
    facts = {
        name: getattr(file, name) for name in ("base_fingerprint", "base_model", "input_template")
    }
    facts |= {
        name: json.dumps(dict(getattr(file, name))) for name in ("decoding", "recipe", "provenance")
    }
    metadata = {"format": f"polyprefix-{file.method}/1", **facts}
    tensors = {
        _TENSORS + name: tensor.detach().cpu().contiguous() for name, tensor in file.state.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, staged, metadata=metadata)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def is_trained_file(path: Path) -> bool:
    """Whether this is a safetensors file of one of these formats."""
    try:
        with safe_open(path, framework="pt") as file:
            return _method_of(file.metadata() or {}) is not None
    except (OSError, SafetensorError):
        return False


def read_trained(path: Path) -> TrainedFile:
    """Read the file. Raises InvalidRequest if it has another format or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            names = list(file.keys())
            state: dict[str, torch.Tensor] = {
                name.removeprefix(_TENSORS): file.get_tensor(name) for name in names
            }
        method = _method_of(facts)
        if method is None:
            raise ValueError("its format is not polyprefix-METHOD/1")
        parsed = {name: json.loads(facts[name]) for name in ("decoding", "recipe", "provenance")}
        return TrainedFile(
            method,
            state,
            base_fingerprint=facts["base_fingerprint"],
            base_model=facts["base_model"],
            input_template=facts["input_template"],
            **parsed,
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InvalidRequest(
            f"{path} is not a file that `polyprefix train --method` has written: {error}"
        ) from error


def _method_of(facts: Mapping[str, str]) -> str | None:
    for method in METHODS:
        if method not in PREFIX_METHODS and facts.get("format") == f"polyprefix-{method}/1":
            return method
    return None
